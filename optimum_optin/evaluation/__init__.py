"""Figures of a model: GLUE, speed."""

from .accuracy import check_model, compare_glue, describe, evaluate_glue, label_order, measure, predict

__all__ = [
    "check_model",
    "compare_glue",
    "describe",
    "evaluate_glue",
    "label_order",
    "measure",
    "predict",
]
