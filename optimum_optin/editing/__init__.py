"""Masks on a live model, and cuts."""
