"""Tiny models of any model type of transformers, with an input that they take: made by rules, not by a table."""
