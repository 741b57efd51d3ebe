"""Speedups: the ratio of runs that took turns, between which bounds it lies, and when it says nothing."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

FEWEST = 6
"""Runs below which there is no interval: the median of five lies outside all five in one case of sixteen."""

NOISE = 0.1
"""How far a bound may lie from the median, as a share of it."""

_COVERED = 0.95


@dataclass(frozen=True)
class Speedup:
    """How many times as fast one thing is as another.

    Args:
        median: median of the ratios of neighbouring runs, slow / fast.
        low: lower bound of the median, with 95 % confidence whatever the distribution; of fewer than `FEWEST` runs, the
            smallest ratio.
        high: the upper bound.
        spread: interquartile range of the ratios, as a share of the median.
        runs: how many ratios there are.
    """

    median: float
    low: float
    high: float
    spread: float
    runs: int

    @property
    def noise(self) -> str | None:
        """Why it says nothing; `None` if it says something."""
        if self.runs < FEWEST:
            return f"{self.runs} runs are too few, {FEWEST} are needed"
        width = max(self.high - self.median, self.median - self.low) / self.median
        return None if width <= NOISE else f"known to ± {width:.0%} only"

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def speedup_of(base: Sequence[float], times: Sequence[float]) -> Speedup:
    """How many times as fast a thing is as what it is compared with.

    Args:
        base: seconds of what it is compared with.
        times: its own seconds; those of one place ran one after the other.
    """
    ratios = sorted(one / other for one, other in zip(base, times, strict=True))
    low, high = _bounds(ratios)
    middle = statistics.median(ratios)
    spread = (quantile(ratios, 0.75) - quantile(ratios, 0.25)) / middle
    return Speedup(median=middle, low=low, high=high, spread=spread, runs=len(ratios))


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the values lie, between neighbours in proportion."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _bounds(ordered: Sequence[float]) -> tuple[float, float]:
    """The ranks between which the median lies: how many values are below it is a matter of tossing coins."""
    count = len(ordered)
    outside, rank = 2 / 2**count, 0
    while outside <= 1 - _COVERED:
        rank += 1
        outside += 2 * math.comb(count, rank) / 2**count
    rank = max(rank, 1)
    return ordered[rank - 1], ordered[count - rank]
