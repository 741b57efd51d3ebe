"""Mask search under a budget (Kwon et al. 2022, Algorithm 1).

In: one score per unit, one cost curve per group, the budget. Out: one mask per group.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..architectures.group import HEADS, NEURONS

_ROLES = (HEADS, NEURONS)


def search(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """Keep the units with the largest total score that fit the budget.

    Heads and neurons are ranked globally, each among their own kind, by score per cost. For every
    number of heads, the rest of the budget is filled with neurons; the best total wins. Costs must be
    linear in the units kept (MACs, parameters).

    Args:
        scores: group key -> score per unit, shape (units,), higher = keep. A key ends in its role.
        costs: group key -> cost of keeping n units, shape (units + 1,).
        budget: the most that the kept units may cost, in the costs' unit.
        floors: role -> units that every group keeps at least (fewer where it has fewer).

    Returns:
        Group key -> boolean mask, shape (units,). Ties go to the earlier unit.

    Raises:
        ValueError: see `check_budget`; or scores that are not finite, below 0, or not of the units that have costs.
    """
    return _search(_rank, scores, costs, budget, floors or {})


def search_uniform(
    scores: Mapping[str, Tensor],
    costs: Mapping[str, Tensor],
    budget: float,
    floors: Mapping[str, int] | None = None,
) -> dict[str, Tensor]:
    """The same with equally many heads, and equally many neurons, in every layer: each keeps its best by score.

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
    """Raise if the budget does not pay for the floors, or for a single unit, or a group has a role that is not known.

    Args:
        costs: see `search`.
        budget: see `search`.
        floors: see `search`.
        dense: the dense model's cost; `None` takes what all units cost.
        spent: what else the budget has paid for; of the numbers that the error names, a part.

    Raises:
        ValueError: names the least share of the dense cost that will do, or the group.
    """
    floors = floors or {}
    for key in costs:
        if _role(key) not in _ROLES:  # whose units would all go, whatever the budget
            raise ValueError(f"{key} has the role {_role(key)!r}; the search knows {' and '.join(_ROLES)}.")
    dense = dense or sum(float(table[-1]) for table in costs.values())
    forced = sum(float(table[min(floors.get(_role(key), 0), len(table) - 1)]) for key, table in costs.items())
    minimum = forced or min((float(table[1]) for table in costs.values()), default=0.0)
    if budget < minimum:
        given, least = (budget + spent) / dense, (minimum + spent) / dense
        raise ValueError(
            f"a budget of {given:.4g} of the dense cost is below the minimum structure, which costs {least:.4g} of it: "
            "ask for more, lower min_heads or min_neurons, or leave layout='uniform'."
        )


def check_kept(masks: Mapping[str, Tensor], floors: Mapping[str, int]) -> None:
    """Raise if a group keeps fewer units than its floor, whatever chose them.

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
    return _spend(scores, budget, *(rank(role, scores, costs, floors.get(role, 0)) for role in _ROLES))


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
    """Units of one kind in steps, best first; `spent[n]` and `gained[n]` are the first n steps' cost and score."""

    def __init__(self, steps: list[list[tuple[str, int]]], cost: Tensor, score: Tensor, forced: int):
        zero = torch.zeros(1, dtype=torch.float64)
        self.steps = steps
        self.spent = torch.cat([zero, cost.cumsum(0)])
        self.gained = torch.cat([zero, score.cumsum(0)])
        self.forced = forced


def _spend(scores: Mapping[str, Tensor], budget: float, heads: _Ranking, neurons: _Ranking) -> dict[str, Tensor]:
    """The masks of the best pair: for every number of head steps, as many neuron steps as the rest pays for."""
    # A budget is the outcome of float arithmetic: the dense cost must fit a budget of "all of it".
    room = budget * (1 + 1e-9)
    best_total, best = -1.0, (0, 0)
    for head_count in range(heads.forced, len(heads.steps) + 1):
        left = room - heads.spent[head_count]
        neuron_count = int(torch.searchsorted(neurons.spent, left, right=True)) - 1
        if left < 0 or neuron_count < neurons.forced:
            break
        total = float(heads.gained[head_count] + neurons.gained[neuron_count])
        if total >= best_total:  # of equal totals, the one with more heads
            best_total, best = total, (head_count, neuron_count)

    masks = {key: torch.zeros(len(scores[key]), dtype=torch.bool) for key in scores}
    for step in heads.steps[: best[0]] + neurons.steps[: best[1]]:
        for key, unit in step:
            masks[key][unit] = True
    return masks


def _rank(role: str, scores: Mapping[str, Tensor], costs: Mapping[str, Tensor], floor: int) -> _Ranking:
    keys = [key for key in scores if _role(key) == role]
    units = [(key, unit) for key in keys for unit in range(len(scores[key]))]
    if not units:
        empty = torch.zeros(0, dtype=torch.float64)
        return _Ranking([], empty, empty, 0)
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
