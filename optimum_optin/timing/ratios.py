"""Ratios: how long one run takes of another's time, with an error, and more turns where the error is large."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .side_by_side import WARM_UP, times_in_turn

ENOUGH = 0.01
"""An error that is small enough: there are no more turns."""

_SECONDS = 0.4  # of each run, in one round of turns
_TURNS = (5, 40)  # in a round, at least and at most
_ROUNDS = 4


@dataclass(frozen=True)
class Ratio:
    """How long a run takes of the time of another one that it took turns with.

    Args:
        value: median of the ratios of neighbours.
        error: the standard error of this median, by the spread of the middle half of the ratios.
        seconds: the median time of the run itself.
        base_seconds: the median time of the other.
        turns: how many turns count.
    """

    value: float
    error: float
    seconds: float
    base_seconds: float
    turns: int


def ratio_of(run: Callable[[], object], base: Callable[[], object]) -> Ratio:
    """Time two runs in turn, up to four times as long where the first round's error is above `ENOUGH`.

    Args:
        run: what to time; it returns once its work is done.
        base: what to compare it with.
    """
    ((seconds,),) = times_in_turn([base], 1, WARM_UP)
    turns = int(min(max(_SECONDS / max(seconds, 1e-9), _TURNS[0]), _TURNS[1]))
    bases: list[float] = []
    times: list[float] = []
    for place in range(_ROUNDS):
        more_bases, more_times = times_in_turn([base, run], turns, 0 if place else 1)
        bases, times = bases + more_bases, times + more_times
        ratios = [time / base_time for time, base_time in zip(times, bases, strict=True)]
        error = _error_of_median(ratios)
        if error <= ENOUGH:
            break
    return Ratio(statistics.median(ratios), error, statistics.median(times), statistics.median(bases), len(ratios))


def _error_of_median(values: list[float]) -> float:
    """The standard error of a median of draws whose middle is as wide as a normal distribution's."""
    low, _, high = statistics.quantiles(values, n=4)
    return 1.253 * (high - low) / 1.349 / len(values) ** 0.5
