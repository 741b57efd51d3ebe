"""Refitting what is left, in closed form."""

from .refit import check_tokens, compensate, refit

__all__ = [
    "check_tokens",
    "compensate",
    "refit",
]
