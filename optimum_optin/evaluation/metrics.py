"""The metrics of GLUE (Wang et al. 2019) and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], float]
"""Predictions and references, both of shape (samples,) -> the metric."""

_RESAMPLES = 1000


def accuracy(predictions: Tensor, references: Tensor) -> float:
    """Share of samples whose class is right."""
    return float((predictions == references).double().mean())


def f1(predictions: Tensor, references: Tensor) -> float:
    """Harmonic mean of precision and recall of class 1; 0 if neither side has that class."""
    predicted, true = predictions == 1, references == 1
    return 2 * int((predicted & true).sum()) / max(1, int(predicted.sum() + true.sum()))


def pearson(predictions: Tensor, references: Tensor) -> float:
    """Pearson's correlation; 0 if one side is constant, so that there is none."""
    return float(torch.corrcoef(torch.stack([predictions, references]).double())[0, 1].nan_to_num())


def matthews_correlation(predictions: Tensor, references: Tensor) -> float:
    """Matthews' correlation of two binary variables, which is Pearson's correlation of zeros and ones."""
    return pearson(predictions, references)


def spearmanr(predictions: Tensor, references: Tensor) -> float:
    """Spearman's rank correlation: Pearson's correlation of the ranks, where equal values share their mean rank."""
    return pearson(_ranks(predictions), _ranks(references))


METRICS: dict[str, Metric] = {
    metric.__name__: metric for metric in (accuracy, f1, matthews_correlation, pearson, spearmanr)
}
"""Name of a metric, as in `evaluate` -> metric."""


def metrics_of(names: Sequence[str], predictions: Tensor, references: Tensor) -> dict[str, float]:
    """Each named metric of predictions and references, both of shape (samples,)."""
    return {name: METRICS[name](predictions, references) for name in names}


def standard_error(name: str, predictions: Tensor, references: Tensor) -> float:
    """Standard error of a metric over samples: analytic for accuracy, a bootstrap with a fixed seed for the others.

    Args:
        name: a key of `METRICS`.
        predictions: shape (samples,).
        references: shape (samples,).
    """
    samples = len(references)
    if name == "accuracy":
        share = accuracy(predictions, references)
        return math.sqrt(share * (1 - share) / samples)
    generator = torch.Generator().manual_seed(0)
    drawn = (torch.randint(samples, (samples,), generator=generator) for _ in range(_RESAMPLES))
    values = [METRICS[name](predictions[rows], references[rows]) for rows in drawn]
    return float(torch.tensor(values, dtype=torch.float64).std())


def _ranks(values: Tensor) -> Tensor:
    _, place, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[place]
