"""Merging similar tokens of images (ToMe)."""

from .matching import match_tokens, merge_tokens, most_merges

__all__ = [
    "match_tokens",
    "merge_tokens",
    "most_merges",
]
