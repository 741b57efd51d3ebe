"""Rankings: the units of a role in the steps in which a budget takes them, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from .limits import Limit, Limits, limit_of, numbers_of, role_of

_ROUNDING = 1e-9  # worths that differ by less are equal


class Ranking:
    """Units of one kind in steps, best first; `spent[n]` and `gained[n]` are the first n steps' cost and score.

    Args:
        steps: the units of each step, by group key and index.
        cost: of each step.
        score: of each step.
        forced: how many of the first steps must be taken.
    """

    def __init__(self, steps: Sequence[list[tuple[str, int]]], cost: Tensor, score: Tensor, forced: int):
        zero = torch.zeros(1, dtype=torch.float64)
        self.steps = steps
        self.cost = cost
        self.score = score
        self.spent = torch.cat([zero, cost.cumsum(0)])
        self.gained = torch.cat([zero, score.cumsum(0)])
        self.forced = forced


def rank(role: str, scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], limits: Limits) -> Ranking:
    """The units of all groups of a role by score per cost.

    The least that a group must keep is forced, a unit a step. Then a step takes the group's next best units, as many as
    its numbers go up by, or more where those are worth more for what they cost (`_corners`).
    """
    parts = []
    for key in (key for key in scores if role_of(key) == role):
        limit, numbers = limit_of(key, limits), numbers_of(key, limits, len(scores[key]))
        order = _best_first(scores[key], limit)
        units = [(key, unit) for unit in order.tolist()]
        spent, score = costs[key].double().cpu(), scores[key].double().cpu()[order]
        parts.append(_steps(units, range(len(units) + 1), spent, score, _corners(spent, score, numbers)))
    return _joined(parts)


def level(role: str, scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], limits: Limits) -> Ranking:
    """Each step takes the next best units of every group, as many of each as the common number goes up by.

    Args:
        role: of the units.
        scores: of all groups.
        costs: of all groups.
        limits: see `levelled`.
    """
    keys = [key for key in scores if role_of(key) == role]
    orders = {key: _best_first(scores[key], limit_of(key, limits)) for key in keys}
    largest = max(keys, key=lambda key: len(orders[key]))
    count = len(orders[largest])
    spent, score = torch.zeros(count + 1, dtype=torch.float64), torch.zeros(count, dtype=torch.float64)
    for key, order in orders.items():
        spent += pad(costs[key].double().cpu()[None], (0, count - len(order)), mode="replicate")[0]
        score[: len(order)] += scores[key].double().cpu()[order]
    units, ends = [], [0]
    for place in range(count):
        units += [(key, int(order[place])) for key, order in orders.items() if place < len(order)]
        ends.append(len(units))
    return _joined([_steps(units, ends, spent, score, numbers_of(largest, limits, count))])


def together(one: Ranking, other: Ranking) -> Ranking:
    """Two kinds as one: the steps of both by score per cost, the forced ones first, and each kind's in its order."""
    return _joined([_Steps(each.steps, each.cost, each.score, each.forced) for each in (one, other)])


def topped_up(
    masks: Mapping[str, Tensor],
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    limits: Limits,
) -> dict[str, Tensor]:
    """Masks with more units for what is left of a budget, between the corners of curves of costs (`_corners`).

    The group that gains most is the next to get more.
    """
    kept = {key: int(mask.sum()) for key, mask in masks.items()}
    orders = {key: _best_first(score, limit_of(key, limits)) for key, score in scores.items()}
    gained = {key: scores[key].double().cpu()[order].cumsum(0) for key, order in orders.items()}
    numbers = {key: torch.tensor(numbers_of(key, limits, len(score))) for key, score in scores.items()}
    left = budget - sum(float(costs[key][count]) for key, count in kept.items())
    while True:
        found = []
        for key, count in kept.items():
            more = numbers[key][numbers[key] > count]
            more = more[costs[key].double().cpu()[more] - float(costs[key][count]) <= left]
            if len(more):
                gain = gained[key][more[-1] - 1] - (gained[key][count - 1] if count else 0.0)
                found.append((float(gain), key, int(more[-1])))
        if not found:
            return {key: _first_of(orders[key], count) for key, count in kept.items()}
        _, key, count = max(found)
        left -= float(costs[key][count]) - float(costs[key][kept[key]])
        kept[key] = count


def _first_of(order: Tensor, count: int) -> Tensor:
    mask = torch.zeros(len(order), dtype=torch.bool)
    mask[order[:count]] = True
    return mask


@dataclass(frozen=True)
class _Steps:
    """The steps of one group, or of all groups at once; of the first `forced`, all must be taken."""

    units: list[list[tuple[str, int]]]
    cost: Tensor
    score: Tensor
    forced: int


def _steps(
    units: list[tuple[str, int]], ends: Sequence[int], spent: Tensor, score: Tensor, numbers: Sequence[int]
) -> _Steps:
    """Steps from each number of units that may stay to the next, after a step for each unit that must stay.

    Args:
        units: in the order in which they are taken.
        ends: how many of them are taken at 0, 1, ... units of a group.
        spent: cost of 0, 1, ... units of a group.
        score: of the first unit of a group, the second, and so on.
        numbers: how many units of a group may stay, ascending.
    """
    places = [*range(numbers[0]), *numbers]
    steps = [units[ends[start] : ends[end]] for start, end in pairwise(places)]
    return _Steps(steps, spent[places].diff(), _between(score, places), numbers[0])


def _corners(spent: Tensor, score: Tensor, numbers: Sequence[int]) -> list[int]:
    """The numbers of units at the corners of the concave curve above all points of cost and score.

    Of others, more units or fewer are a better use of what they cost. Where each unit costs as much as the one before,
    and is worth no more, all numbers are left.
    """
    cost, gained = spent[numbers].diff(), _between(score, numbers)
    worth = gained / cost
    if (worth[1:] <= worth[:-1] * (1 + _ROUNDING)).all():
        return [*numbers]
    pools: list[list[float]] = []  # cost, score, number of units
    for paid, got, number in zip(cost.tolist(), gained.tolist(), numbers[1:], strict=True):
        pools.append([paid, got, number])
        while len(pools) > 1 and pools[-1][1] * pools[-2][0] > pools[-2][1] * pools[-1][0] * (1 + _ROUNDING):
            more_paid, more_got, last = pools.pop()
            pools[-1] = [pools[-1][0] + more_paid, pools[-1][1] + more_got, last]
    return [numbers[0], *(number for _, _, number in pools)]


def _joined(parts: Sequence[_Steps]) -> Ranking:
    """The steps of several groups by score per cost, those that are forced first, and each group's in its order."""
    worths = []
    for part in parts:
        worth = part.score / part.cost
        worth[: part.forced] = torch.inf
        worths.append(worth.cummin(0).values)  # costs that differ by rounding must not change a group's own order
    order = torch.cat(worths).argsort(descending=True, stable=True)
    steps = [step for part in parts for step in part.units]
    cost, score = (torch.cat([getattr(part, name) for part in parts])[order] for name in ("cost", "score"))
    return Ranking([steps[index] for index in order.tolist()], cost, score, sum(part.forced for part in parts))


def _between(values: Tensor, places: Sequence[int]) -> Tensor:
    """The sums of the values from each place to the next."""
    lengths = torch.tensor(places).diff()
    step = torch.arange(len(lengths)).repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, step, values[places[0] : places[-1]])


def _best_first(score: Tensor, limit: Limit) -> Tensor:
    """The units by score, those that must stay before all others."""
    worth = score.double().cpu().clone()
    worth[torch.tensor(limit.stay, dtype=torch.long)] = torch.inf
    return _in_order(worth, limit.parts)


def _in_order(worth: Tensor, parts: int) -> Tensor:
    """The units from best to worst; of several parts, the best of each, then the second of each, and so on."""
    by_part = worth.view(parts, -1)
    order = by_part.argsort(dim=1, descending=True, stable=True)
    return (order + torch.arange(parts)[:, None] * by_part.shape[1]).T.flatten()
