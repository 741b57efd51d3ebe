"""In time: a choice whose cut model was timed, and that is searched for again once where it is far off its budget."""

from __future__ import annotations

from dataclasses import replace

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

_NEAR = 0.03  # of the budget, what a model may be off by
_SPENT = 0.97  # of the budget: what costs more has no room for anything else


def in_time(
    model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig, choice: Choice
) -> tuple[Choice, Ratio]:
    """Time the cut model that a choice makes; if it is more than 3 % off its budget, choose once more.

    What a timetable says of whole models is off where sublayers hinder or help each other. The second search goes by a
    budget that is mended by what the first cut saved of what it was to save.

    Args:
        model: the dense model.
        groups: its groups.
        scores: its scores.
        config: the configuration; it has a budget of latency.
        choice: what was chosen by the timetable.

    Returns:
        The better choice of the two, and its time as a part of the dense model's.
    """

    def timed(made: Choice) -> Ratio:
        batch = timed_batch(model, scores.tokens, config)
        return on_main(lambda: time_of(model, groups, made.masks, batch, config.latency_backend))

    first = timed(choice)
    price = next(each for each in prices_of(model, groups, scores.tokens, config, None) if each.name == "latency")
    limit = config.latency if is_share(config.latency) else price.limit / first.base_seconds
    predicted = price.cost_of(choice.masks) / price.dense
    spent = predicted > _SPENT * price.limit / price.dense
    tried = [(choice, first)]
    if first.value > (1 + _NEAR) * limit or (spent and first.value < (1 - _NEAR) * limit):
        mended = _mended(limit, predicted, first.value)
        again = _ranked_again(model, groups, scores, replace(config, latency=mended), choice) if mended > 0 else None
        if again is not None:
            tried.append((again, timed(again)))
    chosen, found = min(tried, key=lambda each: abs(each[1].value / limit - 1))
    if found.value > (1 + _NEAR) * limit:
        logger.warning(
            f"the cut model takes {shown('latency', found.seconds)}, {found.value:.1%} of the dense model's time, more "
            f"than the {limit:.1%} that was asked for: times on this machine vary, or nothing that may go saves more."
        )
    return chosen, found


def _mended(limit: float, predicted: float, measured: float) -> float:
    """The budget at which a cut is expected to take the limit; all are shares of the dense time."""
    if measured >= 1:  # it has saved nothing: no share of it tells how much more it takes
        return limit * predicted / measured
    return min(1 - (1 - limit) * (1 - predicted) / (1 - measured), 1.0)


def _ranked_again(
    model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig, choice: Choice
) -> Choice | None:
    """The same choice at another budget; `None` if that does not pay for what must stay."""
    try:
        return ranked(model, groups, scores, config, output_weight=choice.output_weight, sublayers=choice.sublayers)
    except ValueError:
        return None
