"""Ratios: how long one run takes of another's time, with an error, and more turns where the error is large."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from .side_by_side import WARM_UP, times_in_turn
from .speedups import FEWEST, speedup_of

ENOUGH = 0.01
"""An error that is small enough: there are no more turns."""

_SECONDS = 0.4  # of each run, in one round of turns
_TURNS = (FEWEST, 40)  # in a round, at least and at most
_ROUNDS = 4
_ERRORS_IN_BOUND = 1.96  # standard errors, of the bounds that the median is between in 95 % of cases


@dataclass(frozen=True)
class Ratio:
    """How long a run takes of the time of another one that it took turns with.

    Args:
        value: median of the ratios of neighbours.
        error: the standard error of this median, by its bounds (`Speedup`).
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
        found = speedup_of(times, bases)
        error = (found.high - found.low) / (2 * _ERRORS_IN_BOUND)
        if error <= ENOUGH:
            break
    return Ratio(found.median, error, statistics.median(times), statistics.median(bases), found.runs)
