"""Rankings: the units of a role in the steps in which a budget takes them, best first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from math import lcm

import torch
from torch import Tensor
from torch.nn.functional import pad

from .limits import Limit, Limits, limit_of, numbers_of, role_of


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
    its numbers go up by.
    """
    steps, step_costs, step_scores, worths, forced = [], [], [], [], 0
    for key in (key for key in scores if role_of(key) == role):
        limit, numbers = limit_of(key, limits), numbers_of(key, limits, len(scores[key]))
        score, cost = scores[key].double().cpu(), costs[key].double().cpu().diff()
        worth = score / cost
        worth[torch.tensor(limit.stay, dtype=torch.long)] = torch.inf
        order = _in_order(worth, limit.parts)
        first, rest = order[: numbers[0]].sort().values, order[numbers[0] : numbers[-1]]
        units, step = [(key, unit) for unit in rest.tolist()], lcm(limit.step, limit.parts)
        steps += [[(key, unit)] for unit in first.tolist()]
        steps += [units[start : start + step] for start in range(0, len(units), step)]
        taken_cost, taken_score = _sums(cost[rest], step), _sums(score[rest], step)
        step_costs += [cost[first], taken_cost]
        step_scores += [score[first], taken_score]
        # Costs that differ by rounding must not bring a group's last and smaller step before a full one.
        worths += [torch.full_like(cost[first], torch.inf), (taken_score / taken_cost).cummin(0).values]
        forced += len(first)
    order = torch.cat(worths).argsort(descending=True, stable=True)
    cost, score = torch.cat(step_costs)[order], torch.cat(step_scores)[order]
    return Ranking([steps[index] for index in order], cost, score, forced)


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
    limit, count = limit_of(largest, limits), len(orders[largest])
    step = lcm(limit.step, limit.parts)
    numbers = numbers_of(largest, limits, count)
    levels = [[(key, order[place]) for key, order in orders.items() if place < len(order)] for place in range(count)]
    cost, score = torch.zeros(2, count, dtype=torch.float64)
    for key, order in orders.items():
        cost[: len(order)] += costs[key].double().cpu().diff()
        score[: len(order)] += scores[key].double().cpu()[order]
    first, rest = slice(numbers[0]), slice(numbers[0], numbers[-1])
    blocks = [levels[start : min(start + step, numbers[-1])] for start in range(numbers[0], numbers[-1], step)]
    steps = levels[first] + [[*chain.from_iterable(block)] for block in blocks]
    cost, score = (torch.cat([each[first], _sums(each[rest], step)]) for each in (cost, score))
    return Ranking(steps, cost, score, numbers[0])


def together(one: Ranking, other: Ranking) -> Ranking:
    """Two kinds as one: the steps of both by score per cost, the forced ones first, and each kind's in its order."""
    worths = []
    for ranking in (one, other):
        worth = ranking.score / ranking.cost
        worth[: ranking.forced] = torch.inf
        worths.append(worth.cummin(0).values)
    order = torch.cat(worths).argsort(descending=True, stable=True)
    steps = [*one.steps, *other.steps]
    cost, score = torch.cat([one.cost, other.cost]), torch.cat([one.score, other.score])
    return Ranking([steps[index] for index in order], cost[order], score[order], one.forced + other.forced)


def _best_first(score: Tensor, limit: Limit) -> list[int]:
    """The units by score, those that must stay before all others."""
    worth = score.double().cpu().clone()
    worth[torch.tensor(limit.stay, dtype=torch.long)] = torch.inf
    return _in_order(worth, limit.parts).tolist()


def _in_order(worth: Tensor, parts: int) -> Tensor:
    """The units from best to worst; of several parts, the best of each, then the second of each, and so on."""
    by_part = worth.view(parts, -1)
    order = by_part.argsort(dim=1, descending=True, stable=True)
    return (order + torch.arange(parts)[:, None] * by_part.shape[1]).T.flatten()


def _sums(values: Tensor, step: int) -> Tensor:
    """Sums of so many values each, the last one of what is left."""
    return pad(values, (0, -len(values) % step)).reshape(-(-len(values) // step), step).sum(1)
