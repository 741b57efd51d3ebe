"""Mask search under a budget (Kwon et al. 2022, Algorithm 1).

In: one score per unit, one cost curve per group, the budget. Out: one mask per group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..architectures.group import HEADS

_COMBINATIONS = 2**24  # combinations of numbers of units that are tried one by one
_AT_ONCE = 2**20  # combinations in memory


def search(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep the units with the largest total score that fit the budget.

    The units of each role are ranked over all groups by score per cost. For every number of heads, the rest of the
    budget is filled with neurons; the best total wins. With further roles, one role fills the rest (the one with most
    units, but never the heads), and every combination of the others' numbers is tried. Beyond 2^24 combinations, which
    take seconds, the largest of the tried roles are ranked together until there are fewer; the total may then miss the
    best one by the score of one unit. Costs must be linear in the units kept (MACs, parameters).

    Args:
        scores: group key -> score per unit, shape (units,), higher = keep. A key ends in its role.
        costs: group key -> cost of keeping n units, shape (units + 1,).
        budget: the most that the kept units may cost, in the costs' unit.
        floors: role -> units that every group keeps at least (fewer where it has fewer).

    Returns:
        Group key -> boolean mask, shape (units,). Of equal units the earlier one is kept; of equal totals the one with
        more heads wins, then the one with more units of the next role by name.

    Raises:
        ValueError: see `check_budget`; or scores that are not finite, below 0, or for other units than the costs.
    """
    return _search(_rank, scores, costs, budget, floors or {})


def search_uniform(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Search with equally many units of a role in every layer: each layer keeps its best by score.

    It works as `search` does, with one unit of every layer in the place of a single unit.

    Args:
        scores: see `search`.
        costs: see `search`.
        budget: see `search`.
        floors: see `search`; a model needs a floor of 1 or more where its layers may not lose all units.

    Returns:
        See `search`. A group that has fewer units than the others keep keeps all of them.

    Raises:
        ValueError: see `search`.
    """
    return _search(_level, scores, costs, budget, floors or {})


def check_budget(
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Mapping[str, int] | None = None,
    dense: float | None = None,
    spent: float = 0.0,
) -> None:
    """Raise if the budget does not pay for the floors, or for a single unit.

    Args:
        costs: see `search`.
        budget: see `search`.
        floors: see `search`.
        dense: the dense model's cost; `None` takes what all units cost.
        spent: what the budget has paid for besides; the shares that the error names include it.

    Raises:
        ValueError: names the least share of the dense cost that will do.
    """
    floors = floors or {}
    dense = dense or sum(float(table[-1]) for table in costs.values())
    forced = sum(float(table[min(floors.get(_role(key), 0), len(table) - 1)]) for key, table in costs.items())
    minimum = forced or min((float(table[1]) for table in costs.values() if len(table) > 1), default=0.0)
    if budget < minimum:
        given, least = (budget + spent) / dense, (minimum + spent) / dense
        raise ValueError(
            f"a budget of {given:.4g} of the dense cost is below the minimum structure, which costs {least:.4g} of it: "
            "ask for more, lower min_heads, min_neurons or floors, or leave layout='uniform'."
        )


def check_kept(masks: Mapping[str, Tensor], floors: Mapping[str, int]) -> None:
    """Raise if a group keeps fewer units than its floor.

    Raises:
        ValueError: names the group.
    """
    for key, mask in masks.items():
        floor = min(floors.get(_role(key), 0), len(mask))
        if int(mask.sum()) < floor:
            raise ValueError(f"{key} would keep {int(mask.sum())} units, below its floor of {floor}: check its scores.")


def _search(
    rank: Callable[..., _Ranking],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Mapping[str, int],
) -> dict[str, Tensor]:
    check_budget(costs, budget, floors)
    _check_scores(scores, costs)
    roles = sorted({_role(key) for key in scores}, key=lambda role: (role != HEADS, role))
    return _spend(scores, budget, {role: rank(role, scores, costs, floors.get(role, 0)) for role in roles})


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


class _Ranking:
    """Units of a role in steps, best first; `spent[n]` and `gained[n]` are the first n steps' cost and score."""

    def __init__(self, steps: Sequence[list[tuple[str, int]]], cost: Tensor, score: Tensor, forced: int):
        zero = torch.zeros(1, dtype=torch.float64)
        self.steps = steps
        self.cost = cost
        self.score = score
        self.spent = torch.cat([zero, cost.cumsum(0)])
        self.gained = torch.cat([zero, score.cumsum(0)])
        self.forced = forced


def _spend(scores: Mapping[str, Tensor], budget: float, rankings: Mapping[str, _Ranking]) -> dict[str, Tensor]:
    """The masks of the best combination of numbers of steps."""
    masks = {key: torch.zeros(len(score), dtype=torch.bool) for key, score in scores.items()}
    if not rankings:
        return masks
    largest = max(rankings, key=lambda role: (role != HEADS, len(rankings[role].steps)))
    filled = rankings[largest]
    tried = [ranking for role, ranking in rankings.items() if role != largest]
    while len(tried) > 1 and math.prod(len(ranking.spent) for ranking in tried) > _COMBINATIONS:
        *tried, one, other = sorted(tried, key=lambda ranking: len(ranking.steps))
        tried.append(_together(one, other))
    # A budget is the outcome of float arithmetic: the dense cost must fit a budget of "all of it".
    counts = _best_counts(tried, filled, budget * (1 + 1e-9))
    for ranking, count in zip([*tried, filled], counts, strict=True):
        for key, unit in (each for step in ranking.steps[:count] for each in step):
            masks[key][unit] = True
    return masks


def _best_counts(tried: Sequence[_Ranking], filled: _Ranking, room: float) -> list[int]:
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


def _together(one: _Ranking, other: _Ranking) -> _Ranking:
    """Two rankings as one: all steps by score per cost, forced ones first, those of each ranking in their order."""
    worths = []
    for ranking in (one, other):
        worth = ranking.score / ranking.cost
        worth[: ranking.forced] = torch.inf
        worths.append(worth.cummin(0).values)
    order = torch.cat(worths).argsort(descending=True, stable=True)
    steps = [*one.steps, *other.steps]
    cost, score = torch.cat([one.cost, other.cost]), torch.cat([one.score, other.score])
    return _Ranking([steps[index] for index in order], cost[order], score[order], one.forced + other.forced)


def _rank(role: str, scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], floor: int) -> _Ranking:
    keys = [key for key in scores if _role(key) == role]
    units = [(key, unit) for key in keys for unit in range(len(scores[key]))]
    score = torch.cat([scores[key].double().cpu() for key in keys])
    cost = torch.cat([costs[key].double().cpu().diff() for key in keys])
    worth = score / cost
    forced = 0
    offset = 0
    for key in keys:
        size = len(scores[key])
        part = worth[offset : offset + size]
        top = part.argsort(descending=True, stable=True)[:floor]
        part[top] = torch.inf
        forced += len(top)
        offset += size
    order = worth.argsort(descending=True, stable=True)
    return _Ranking([[units[index]] for index in order], cost[order], score[order], forced)


def _level(role: str, scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], floor: int) -> _Ranking:
    """Each step takes the next best unit of every group."""
    keys = [key for key in scores if _role(key) == role]
    orders = {key: scores[key].argsort(descending=True, stable=True).tolist() for key in keys}
    count = max(map(len, orders.values()), default=0)
    steps = [[(key, order[step]) for key, order in orders.items() if step < len(order)] for step in range(count)]
    cost, score = torch.zeros(2, count, dtype=torch.float64)
    for key, order in orders.items():
        cost[: len(order)] += costs[key].double().cpu().diff()
        score[: len(order)] += scores[key].double().cpu()[order]
    return _Ranking(steps, cost, score, min(floor, count))


def _role(key: str) -> str:
    return key.rpartition(".")[2]
