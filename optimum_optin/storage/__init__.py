"""Pruned models on disk, and how transformers loads them."""
