"""Accuracy of a classifier: logits of the right shape, ranks of the true classes, and shares with standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ..running.forward import logits_of

TARGETS = ("label", "labels", "fine_label", "class")
"""Names of columns that hold a class."""
_TOP = 5


def rank_of(logits: Tensor, targets: Tensor) -> Tensor:
    """How many classes are likelier than the true one; of equals, those that come first.

    Args:
        logits: shape (samples, classes).
        targets: class indices, shape (samples,).
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return (order == targets[:, None]).int().argmax(-1)


def accuracies(ranks: Tensor, classes: int) -> dict[str, tuple[float, float]]:
    """Top-1 and, with more than five classes, top-5 accuracy, each with its binomial standard error.

    Args:
        ranks: from `rank_of`, shape (samples,).
        classes: how many classes there are.
    """
    tops = {"accuracy": 1, **({f"top_{_TOP}_accuracy": _TOP} if classes > _TOP else {})}
    shares = {name: float((ranks < top).double().mean()) for name, top in tops.items()}
    return {name: (share, math.sqrt(share * (1 - share) / len(ranks))) for name, share in shares.items()}


def class_logits(outputs: Mapping[str, Any], shape: tuple[int, int], model: nn.Module, task: str) -> Tensor:
    """The logits among a model's outputs.

    Raises:
        ValueError: they have another shape, or are not finite.
    """
    logits = logits_of(outputs)
    if logits is None or tuple(logits.shape) != shape:
        found = None if logits is None else tuple(logits.shape)
        raise ValueError(f"{task} needs logits of shape {shape} of this batch, {type(model).__name__} gives {found}.")
    if not logits.isfinite().all():
        raise ValueError(f"the model's outputs on {task} are not finite: its weights are damaged.")
    return logits
