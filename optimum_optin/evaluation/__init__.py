"""Measuring a model: accuracy on GLUE, and speed."""

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
