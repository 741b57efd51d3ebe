"""Rankings: the units of a role in the steps in which a budget takes them, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .limits import Limit, Limits, limit_of, numbers_of, role_of

_ROUNDING = 1e-6  # worths that differ by less are equal

Orders = Mapping[str, Tensor]
"""Group key -> its units, those that are to be kept first at the beginning."""


@dataclass(frozen=True)
class _Steps:
    """The steps of groups that take equally many units each.

    Args:
        orders: of these groups.
        sizes: how many units each step takes of each group that has so many.
        cost: of each step.
        score: of each step.
        forced: how many of the first steps must be taken.
    """

    orders: Orders
    sizes: Tensor
    cost: Tensor
    score: Tensor
    forced: int


class Ranking:
    """Units of one kind in steps, best first; `spent[n]` and `gained[n]` are the first n steps' cost and score.

    The steps are by score per cost, those that are forced first, and those of the same groups in their order.

    Args:
        parts: the steps of groups, or of all groups at once.
    """

    def __init__(self, parts: Sequence[_Steps]):
        worths = []
        for part in parts:
            worth = part.score / part.cost
            worth[: part.forced] = torch.inf
            worths.append(worth.cummin(0).values)  # costs that differ by rounding must not change a group's own order
        order = torch.cat(worths).argsort(descending=True, stable=True)
        owner = torch.arange(len(parts)).repeat_interleave(torch.tensor([len(part.sizes) for part in parts]))
        cost, score, sizes = (torch.cat([getattr(part, name) for part in parts]) for name in ("cost", "score", "sizes"))
        self.parts = parts
        self.spent, self.gained = _summed(cost[order]), _summed(score[order])
        self.forced = sum(part.forced for part in parts)
        self._owner, self._sizes = owner[order], sizes[order]

    def __len__(self) -> int:
        return len(self._sizes)

    def masks(self, count: int) -> dict[str, Tensor]:
        """The units that the first so many steps take."""
        taken = self._sizes.new_zeros(len(self.parts)).index_add(0, self._owner[:count], self._sizes[:count])
        return {
            key: _first_of(order, int(number))
            for part, number in zip(self.parts, taken, strict=True)
            for key, order in part.orders.items()
        }


def rank(role: str, scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], limits: Limits) -> Ranking:
    """The units of all groups of a role by score per cost.

    The least that a group must keep is forced, a unit a step. Then a step takes the group's next best units, as many as
    its numbers go up by, or more where those are worth more for what they cost (`_corners`).
    """
    parts = []
    for key in (key for key in scores if role_of(key) == role):
        numbers = numbers_of(key, limits, len(scores[key]))
        order = _best_first(scores[key], limit_of(key, limits))
        spent, score = costs[key].double().cpu(), scores[key].double().cpu()[order]
        parts.append(_steps({key: order}, spent, score, _corners(spent, score, numbers)))
    return Ranking(parts)


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
    return Ranking([_steps(orders, spent, score, numbers_of(largest, limits, count))])


def together(one: Ranking, other: Ranking) -> Ranking:
    """Two kinds as one."""
    return Ranking([*one.parts, *other.parts])


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


def _steps(orders: Orders, spent: Tensor, score: Tensor, numbers: Sequence[int]) -> _Steps:
    """Steps from each number of units that may stay to the next, after a step for each unit that must stay.

    Args:
        orders: of the groups that take them.
        spent: cost of 0, 1, ... units of each group.
        score: of the first unit of each group, the second, and so on.
        numbers: how many units of a group may stay, ascending.
    """
    places = [*range(numbers[0]), *numbers]
    return _Steps(orders, torch.tensor(places).diff(), spent[places].diff(), _between(score, places), numbers[0])


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


def _between(values: Tensor, places: Sequence[int]) -> Tensor:
    """The sums of the values from each place to the next."""
    lengths = torch.tensor(places).diff()
    step = torch.arange(len(lengths)).repeat_interleave(lengths)
    return values.new_zeros(len(lengths)).index_add(0, step, values[places[0] : places[-1]])


def _summed(values: Tensor) -> Tensor:
    """The sums of the first 0, 1, ... values."""
    return torch.cat([values.new_zeros(1), values.cumsum(0)])


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
