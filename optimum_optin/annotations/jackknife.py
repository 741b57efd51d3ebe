"""Standard errors by a jackknife: what a metric of all samples together is without each of some groups of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch

_GROUPS = 20


def jackknife(samples: int, measured: Callable[[list[int]], Mapping[str, float]]) -> dict[str, float | None]:
    """The standard errors of metrics that are no means over samples.

    One of 20 groups of samples is left out in turn; of fewer samples, one.

    Args:
        samples: how many there are.
        measured: places of samples -> metric -> its value on them, which may be NaN.

    Returns:
        Metric -> its standard error, `None` with fewer than two values; empty for a single sample.
    """
    if samples < 2:
        return {}
    drawn = torch.randperm(samples, generator=torch.Generator().manual_seed(0)).numpy()
    groups = [set(group.tolist()) for group in np.array_split(drawn, _GROUPS) if len(group)]
    without = [measured([place for place in range(samples) if place not in group]) for group in groups]
    return {name: _error([each[name] for each in without]) for name in without[0]}


def _error(values: list[float]) -> float | None:
    there = np.array([value for value in values if not math.isnan(value)])
    if len(there) < 2:
        return None
    return float(np.sqrt((len(there) - 1) / len(there) * np.square(there - there.mean()).sum()))
