"""Digests: what ties the files of a saved model to each other, and finds what was changed or is missing."""
