"""Refitting what is left, in closed form."""

from .refit import check_tokens, compensate, dense_passes

__all__ = [
    "check_tokens",
    "compensate",
    "dense_passes",
]
