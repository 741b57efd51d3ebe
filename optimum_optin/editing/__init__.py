"""Editing a model: masks that leave the weights alone, and cuts."""
