"""In time: a choice whose cut model was timed, and that is searched for again where it is far off its budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn
from transformers.utils import logging

from ..architectures.group import Groups
from ..config import OptinConfig
from ..pricing.prices import prices_of
from ..pricing.timetable import time_of
from ..pricing.timetables import timed_batch
from ..quantities import is_share, shown
from ..running.processes import on_main
from ..scoring import Scores
from ..timing.ratios import Ratio
from .candidates import Choice, ranked

logger = logging.get_logger(__name__)

_AGAIN = 3  # searches after the first
_NEAR = 0.03  # of the budget, what a model may be off by
_SPENT = 0.97  # of the budget: what costs more has no room for anything else


@dataclass(frozen=True)
class _Tried:
    """A cut that was timed.

    Args:
        choice: what it keeps.
        asked: the share of the dense time that it was searched for with.
        found: its time as a part of the dense one's.
    """

    choice: Choice
    asked: float
    found: Ratio


def in_time(model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig, choice: Choice) -> Choice:
    """Time the cut model that a choice makes; while it is more than 3 % off its budget, choose again, at most thrice.

    What a timetable says of whole models is off where sublayers hinder or help each other. The second search goes by a
    budget that is mended by what the first cut saved of what it was to save, the next by the line through two cuts.

    Args:
        model: the dense model.
        groups: its groups.
        scores: its scores.
        config: the configuration; it has a budget of latency.
        choice: what was chosen by the timetable.

    Returns:
        The choice that is nearest, with its time as a part of the dense model's.
    """

    def timed(made: Choice) -> Ratio:
        batch = timed_batch(model, scores.tokens, config)
        return on_main(lambda: time_of(model, groups, made.masks, batch, config.latency_backend))

    price = next(each for each in prices_of(model, groups, scores.tokens, config, None) if each.name == "latency")
    found = timed(choice)
    limit = config.latency if is_share(config.latency) else price.limit / found.base_seconds
    asked = price.limit / price.dense
    tried = [_Tried(choice, asked, found)]
    spent = price.cost_of(choice.masks) > _SPENT * price.limit
    while len(tried) <= _AGAIN and not _is_near(found.value, limit) and (spent or found.value > limit):
        asked = _mended(tried, limit)
        again = _ranked_again(model, groups, scores, replace(config, latency=asked), choice) if 0 < asked <= 1 else None
        if again is None:
            break
        found = timed(again)
        tried.append(_Tried(again, asked, found))
    best = min(tried, key=lambda each: abs(each.found.value / limit - 1))
    choice, found = best.choice, best.found
    if found.value > (1 + _NEAR) * limit:
        logger.warning(
            f"the cut model takes {shown('latency', found.seconds)}, {found.value:.1%} of the dense model's time, more "
            f"than the {limit:.1%} that was asked for: times on this machine vary, or nothing that may go saves more."
        )
    return replace(choice, timed=found)


def _is_near(share: float, limit: float) -> bool:
    return abs(share / limit - 1) <= _NEAR


def _mended(tried: Sequence[_Tried], limit: float) -> float:
    """The budget at which a cut is expected to take the limit; all are shares of the dense time."""
    above = [each for each in tried if each.found.value > limit]
    below = [each for each in tried if each.found.value <= limit]
    if above and below:  # on the line through the two that are nearest
        high, low = min(above, key=lambda each: each.found.value), max(below, key=lambda each: each.found.value)
        part = (limit - low.found.value) / (high.found.value - low.found.value)
        return low.asked + part * (high.asked - low.asked)
    last = tried[-1]
    if last.found.value >= 1:  # it has saved nothing: no share of it tells how much more it takes
        return last.asked * limit / last.found.value
    return 1 - (1 - limit) * (1 - last.asked) / (1 - last.found.value)


def _ranked_again(
    model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig, choice: Choice
) -> Choice | None:
    """The same choice at another budget; `None` if that does not pay for what must stay."""
    try:
        return ranked(model, groups, scores, config, output_weight=choice.output_weight, sublayers=choice.sublayers)
    except ValueError:
        return None
