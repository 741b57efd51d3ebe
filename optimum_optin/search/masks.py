"""Mask search under a budget (Kwon et al. 2022, Algorithm 1).

In: one score per unit, one cost curve per group, the budget. Out: one mask per group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..architectures.group import HEADS
from ..pricing.prices import ROUNDING
from ..quantities import shown
from .limits import Limits, levelled, limit_of, numbers_of, role_of
from .ranking import Ranking, level, rank, together, topped_up

COMBINATIONS = 2**24  # combinations of numbers of units that are tried one by one
_AT_ONCE = 2**20  # combinations in memory


def search(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Limits | None = None,
    combinations: int = COMBINATIONS,
) -> dict[str, Tensor]:
    """Keep the units with the largest total score that fit the budget.

    The units of each role are ranked over all groups by score per cost. For every number of heads, the rest of the
    budget is filled with neurons; the best total wins. With further roles, one role fills the rest (the one with most
    units, but never the heads), and every combination of the others' numbers is tried. Beyond `combinations` of them
    (2^24 take seconds), the largest of the tried roles are ranked together until there are fewer; the total may then
    miss the best one by the score of one unit. Where a group keeps multiples of a number, its units are ranked that
    many at a time, the best first. Where costs are not linear in the units kept (milliseconds), a step takes as many
    units as are the best use of what they cost, and what is left of the budget goes to whatever then gains most.

    Args:
        scores: group key -> score per unit, shape (units,), higher = keep. A key ends in its role.
        costs: group key -> cost of keeping n units, shape (units + 1,).
        budget: the most that the kept units may cost, in the costs' unit.
        floors: role -> units that every group keeps at least (fewer where it has fewer); or group key -> `Limit`, with
            all that holds for one group.
        combinations: how many combinations of numbers of units to try one by one at most.

    Returns:
        Group key -> boolean mask, shape (units,). Of equal units the earlier one is kept; of equal totals the one with
        more heads wins, then the one with more units of the next role by name.

    Raises:
        ValueError: see `check_budget`; limits that no number of units meets; or scores that are not finite, below 0, or
            for other units than the costs.
    """
    return _search(rank, scores, costs, budget, floors or {}, combinations=combinations)


def search_uniform(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Limits | None = None,
    combinations: int = COMBINATIONS,
) -> dict[str, Tensor]:
    """Search with equally many units of a role in every layer: each layer keeps its best by score.

    It works as `search` does, with one unit of every layer in the place of a single unit.

    Args:
        scores: see `search`.
        costs: see `search`.
        budget: see `search`.
        floors: see `search` and `levelled`; a model needs a floor of 1 or more where its layers may not lose all units.
        combinations: see `search`.

    Returns:
        See `search`. A group that has fewer units than the others keep keeps all of them.

    Raises:
        ValueError: see `search`.
    """
    sizes = {key: len(score) for key, score in scores.items()}
    return _search(level, scores, costs, budget, levelled(floors or {}, sizes), combinations=combinations)


def check_budget(
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Limits | None = None,
    *,
    dense: float | None = None,
    spent: float = 0.0,
    name: str | None = None,
) -> None:
    """Raise if the budget does not pay for the least that must stay, or for a single step.

    Args:
        costs: see `search`.
        budget: see `search`.
        floors: see `search`.
        dense: the dense model's cost; `None` takes what all units cost.
        spent: what the budget has paid for besides; the shares that the error names include it.
        name: of the budget, for the error.

    Raises:
        ValueError: names the least share of the dense cost that will do, and the groups that must stay whole; or limits
            that no number of units meets.
    """
    dense = dense or sum(float(table[-1]) for table in costs.values())
    minimum = minimum_cost(costs, floors)
    if budget * ROUNDING < minimum:
        given, least = (budget + spent) / dense, (minimum + spent) / dense
        forced = {key: numbers_of(key, floors or {}, len(table) - 1)[0] for key, table in costs.items()}
        whole = [key for key, table in costs.items() if forced[key] == len(table) - 1 > 0]
        heading, amount = (f"{name}: ", f" ({shown(name, minimum + spent)})") if name else ("", "")
        raise ValueError(
            f"{heading}a budget of {given:.4g} of the dense cost is below the minimum structure, which costs "
            f"{least:.4g} of it{amount}: ask for more, lower min_heads, min_neurons, floors or keep, exclude less, or "
            "leave layout='uniform'." + (f" What must stay whole: {_listed(whole)}." if whole else "")
        )


def minimum_cost(costs: Mapping[str, Tensor], floors: Limits | None = None) -> float:
    """What the least that must stay costs; a single step, if that is nothing.

    Args:
        costs: see `search`.
        floors: see `search`.

    Raises:
        ValueError: limits that no number of units meets.
    """
    numbers = {key: numbers_of(key, floors or {}, len(table) - 1) for key, table in costs.items()}
    forced = sum(float(table[numbers[key][0]]) for key, table in costs.items())
    steps = [float(table[numbers[key][1]]) for key, table in costs.items() if len(numbers[key]) > 1]
    return forced or min(steps, default=0.0)


def check_kept(masks: Mapping[str, Tensor], floors: Limits) -> None:
    """Raise if a group does not keep what its floor or its limit asks for, whatever chose the units.

    Raises:
        ValueError: names the group.
    """
    for key, mask in masks.items():
        limit, numbers, kept = limit_of(key, floors), numbers_of(key, floors, len(mask)), int(mask.sum())
        if kept < numbers[0]:
            raise ValueError(f"{key} would keep {kept} units, below its floor of {numbers[0]}: check its scores.")
        if kept not in numbers or not mask[list(limit.stay)].all():
            raise ValueError(f"{key} would keep {kept} units, which {limit} does not allow: check its scores.")


def _search(
    ranked: Callable[..., Ranking],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Limits,
    *,
    combinations: int,
) -> dict[str, Tensor]:
    check_budget(costs, budget, floors)
    _check_scores(scores, costs)
    roles = sorted({role_of(key) for key in scores}, key=lambda role: (role != HEADS, role))
    masks = _spend(scores, budget, {role: ranked(role, scores, costs, floors) for role in roles}, combinations)
    if ranked is rank and not all(map(_is_linear, costs.values())):
        masks = topped_up(masks, scores, costs, budget * ROUNDING, floors)
    return masks


def _is_linear(table: Tensor) -> bool:
    """Whether every unit costs the same."""
    cost = table.double().diff()
    return bool(torch.allclose(cost, cost[:1].expand_as(cost), rtol=1e-6))


def _check_scores(scores: Mapping[str, Tensor], costs: Mapping[str, Tensor]) -> None:
    for key in sorted({*scores, *costs}):
        if key not in scores or key not in costs or len(costs[key]) != len(scores[key]) + 1:
            raise ValueError(f"{key} needs a score for each unit, and a cost for every number of them.")
        if not scores[key].isfinite().all() or (scores[key] < 0).any():
            raise ValueError(f"the scores of {key} must be finite numbers of at least 0.")
        if not costs[key].isfinite().all() or (costs[key].diff() <= 0).any():
            raise ValueError(f"the costs of {key} must be finite, and rise with every unit.")
    if not sum(float(score.double().sum()) for score in scores.values()) < torch.inf:
        raise ValueError("the sum of all scores is not finite: they are too large.")


def _listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")


def _spend(
    scores: Mapping[str, Tensor], budget: float, rankings: Mapping[str, Ranking], combinations: int
) -> dict[str, Tensor]:
    """The masks of the best combination of numbers of steps."""
    if not rankings:
        return {}
    largest = max(rankings, key=lambda role: (role != HEADS, len(rankings[role])))
    filled = rankings[largest]
    tried = [ranking for role, ranking in rankings.items() if role != largest]
    while len(tried) > 1 and math.prod(len(ranking.spent) for ranking in tried) > combinations:
        *tried, one, other = sorted(tried, key=len)
        tried.append(together(one, other))
    counts = _best_counts(tried, filled, budget * ROUNDING)
    masks: dict[str, Tensor] = {}
    for ranking, count in zip([*tried, filled], counts, strict=True):
        masks |= ranking.masks(count)
    return {key: masks[key] for key in scores}


def _best_counts(tried: Sequence[Ranking], filled: Ranking, room: float) -> list[int]:
    """The best numbers of steps: every combination of `tried`, and of `filled` as many as the rest pays for."""
    sizes = [len(ranking.spent) - ranking.forced for ranking in tried]
    best_total, best = -1.0, [0] * (len(tried) + 1)
    for first in range(0, math.prod(sizes), _AT_ONCE):
        index = torch.arange(first, min(first + _AT_ONCE, math.prod(sizes)))
        spent, gained = torch.zeros(2, len(index), dtype=torch.float64)
        counts = []
        for number, ranking in enumerate(tried):  # the first role's number moves slowest
            count = index // math.prod(sizes[number + 1 :]) % sizes[number] + ranking.forced
            spent, gained = spent + ranking.spent[count], gained + ranking.gained[count]
            counts.append(count)
        rest = torch.searchsorted(filled.spent, room - spent, right=True) - 1
        total = (gained + filled.gained[rest]).where(rest >= filled.forced, -torch.inf)
        if total.max() >= best_total:
            last = (total == total.max()).nonzero()[-1]  # of equal totals, the one with more heads
            best_total, best = float(total.max()), [int(count[last]) for count in [*counts, rest]]
    return best
