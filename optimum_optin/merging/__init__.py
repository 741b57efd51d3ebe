"""Merging similar tokens of images (ToMe)."""

from .matching import match_tokens, merge_tokens, most_merges, take_tokens

__all__ = [
    "match_tokens",
    "merge_tokens",
    "most_merges",
    "take_tokens",
]
