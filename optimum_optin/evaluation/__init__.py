"""Measuring a model: on the tasks of a table, and speed."""

from .accuracy import check_model, evaluate_glue, label_order, measure, predict
from .comparison import Comparison, check_task, compare, evaluate_model
from .registry import find_task

__all__ = [
    "Comparison",
    "check_model",
    "check_task",
    "compare",
    "evaluate_glue",
    "evaluate_model",
    "find_task",
    "label_order",
    "measure",
    "predict",
]
