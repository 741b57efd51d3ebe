"""Candidates: what to keep and what to merge under a budget, by the scores."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..architectures.group import Groups, Masks
from ..config import OptinConfig
from ..media.vision import prefix_tokens
from ..merging.hooks import check_mergeable, merges_tokens
from ..merging.schedule import TokenSchedule, constant_schedule, scored_schedule
from ..merging.stack import token_layers
from ..pricing.macs import token_costs
from ..pricing.prices import prices_of
from ..scoring import Scores
from ..timing.ratios import Ratio
from .depth import Sublayers, depths, without
from .masks import COMBINATIONS, check_budget, check_kept, search, search_uniform
from .selection import limits_of
from .within import within

_COMBINATIONS = 2**16  # that each of many searches tries
_MERGING_PARTS = (0.25, 0.5, 0.75)  # exponents of the budget, for the share of FLOPs that merging alone is to leave


@dataclass(frozen=True)
class Choice:
    """What to keep, and what to merge.

    Args:
        masks: group key -> what is kept.
        output_weight: weight of the output term that the masks come from.
        schedule: how many tokens to merge; `None` for none.
        sublayers: those that were to keep nothing.
        timed: the cut model's time as a part of the dense one's, if there is a budget of time; see `in_time`.
    """

    masks: Masks
    output_weight: float
    schedule: TokenSchedule | None = None
    sublayers: Sublayers = ()
    timed: Ratio | None = None


def ranked(
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    config: OptinConfig,
    *,
    schedule: TokenSchedule | None = None,
    output_weight: float | None = None,
    sublayers: Sublayers = (),
) -> Choice:
    """Search by the combined scores, under the budget that a schedule leaves.

    Args:
        model: the dense model.
        groups: its groups.
        scores: its scores.
        config: budget, layout and what may go.
        schedule: how many tokens are merged; `None` for none.
        output_weight: see `Scores.combine`; `None` takes the configuration's.
        sublayers: those that keep nothing, see `sublayers_to_go`.

    Raises:
        ValueError: the budget does not pay for the floors; or a floor of a role that the model does not have.
    """
    weight = config.output_weight if output_weight is None else output_weight
    combined = scores.combine(weight)
    prices = prices_of(model, groups, scores.tokens, config, schedule)
    find = search_uniform if config.layout == "uniform" else search
    ordered = {group.key: combined[group.key] for group in groups}
    limits = without(limits_of(config, groups), sublayers)
    combinations = COMBINATIONS if len(prices) == 1 and prices[0].sums else _COMBINATIONS
    masks = within(
        prices,
        find=lambda tables, room: find(ordered, tables, room, limits, combinations),
        worth=lambda masks: sum(float(score[masks[key]].sum()) for key, score in ordered.items()),
    )
    check_kept(masks, limits)
    return Choice(masks, weight, schedule, sublayers)


def sublayers_to_go(
    model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig, schedule: TokenSchedule | None
) -> list[Sublayers]:
    """See `depths`: the whole sublayers to do without beside a schedule; several ways where trial cuts are to choose.

    Raises:
        ValueError: see `depths`.
    """
    if config.depth == "none":
        return [()]
    price, *_ = prices_of(model, groups, scores.tokens, config, schedule)
    return depths(tuple(groups), scores.combine(config.output_weight), price.tables, price.room, config)


def check_token_scores(model: nn.Module, config: OptinConfig, scores: Scores) -> None:
    """Raise if the configuration leaves the schedule to us, but the scores have no losses of merging.

    Raises:
        ValueError: the scores were made without `merging="auto"`.
    """
    if merges_tokens(model, config) and not merges_tokens(model, scores.config):
        raise ValueError(
            "these scores hold no scores of tokens, which merging='auto' needs: score again with it, or set "
            "merging='none' or the pairs to merge after each layer."
        )


def fixed_schedule(model: nn.Module, groups: Groups, config: OptinConfig, tokens: int) -> TokenSchedule | None:
    """The schedule that a configuration gives in numbers; `None` if it gives none.

    Raises:
        ValueError: the numbers do not fit the model.
    """
    if isinstance(config.merging, str):
        return None
    check_mergeable(model)
    layers = list(token_layers(model, groups))
    if len(config.merging) != len(layers):
        raise ValueError(
            f"merging={list(config.merging)} must have a number for each of the model's {len(layers)} layers that can "
            "merge, 0 for the last."
        )
    schedule = TokenSchedule(prefix_tokens(model), dict(zip(layers, config.merging, strict=True)))
    schedule.check(layers, tokens)
    return schedule if any(config.merging) else None


def schedules(model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig) -> list[TokenSchedule | None]:
    """The schedules to choose among, all different, the first `None` (no merging); or the one that was configured."""
    if config.merging != "auto" or not scores.merges:
        return [fixed_schedule(model, groups, config, scores.tokens)]
    costs = token_costs(model, groups, scores.tokens)
    dense = costs.of(TokenSchedule(costs.protected))
    losses = {layer: loss.tolist() for layer, loss in scores.combine_merges().items()}
    flops = next(each for each in prices_of(model, groups, scores.tokens, config, None) if each.name == "flops")
    found = []
    for part in _MERGING_PARTS:
        budget = dense * (flops.limit / flops.dense) ** part
        for schedule in (scored_schedule(costs, losses, budget), constant_schedule(costs, budget)):
            merges = schedule is not None and any(schedule.merges.values())
            if merges and schedule not in found and _affordable(model, groups, scores, config, schedule):
                found.append(schedule)
    return [None, *found]


def _affordable(model: nn.Module, groups: Groups, scores: Scores, config: OptinConfig, schedule: TokenSchedule) -> bool:
    """Whether the budget pays for the floors beside a schedule."""
    try:
        for price in prices_of(model, groups, scores.tokens, config, schedule):
            check_budget(price.tables, price.room, limits_of(config, groups))
    except ValueError:
        return False
    return True
