"""Figures of a model: GLUE, speed."""

from .accuracy import compare_glue, evaluate_glue

__all__ = [
    "compare_glue",
    "evaluate_glue",
]
