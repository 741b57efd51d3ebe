"""Refitting what is left, in closed form."""

from ..passes.calibration import dense_passes
from .refit import check_tokens, compensate, refit

__all__ = [
    "check_tokens",
    "compensate",
    "dense_passes",
    "refit",
]
