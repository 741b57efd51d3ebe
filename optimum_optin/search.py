"""Mask search under a budget (Kwon et al. 2022, Algorithm 1).

In: one score per unit, one cost curve per group, the budget. Out: one mask per group.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .groups import HEADS, NEURONS


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
        ValueError: the budget does not pay for the floors, or for a single unit.
    """
    floors = floors or {}
    check_budget(costs, budget, floors)
    heads, neurons = (_rank(role, scores, costs, floors.get(role, 0)) for role in (HEADS, NEURONS))

    # A budget is the outcome of float arithmetic: the dense cost must fit a budget of "all of it".
    room = budget * (1 + 1e-9)
    best_total, best = -1.0, (0, 0)
    for head_count in range(heads.forced, len(heads.units) + 1):
        left = room - heads.spent[head_count]
        neuron_count = int(torch.searchsorted(neurons.spent, left, right=True)) - 1
        if left < 0 or neuron_count < neurons.forced:
            break
        total = float(heads.gained[head_count] + neurons.gained[neuron_count])
        if total >= best_total:  # of equal totals, the one with more heads
            best_total, best = total, (head_count, neuron_count)

    masks = {key: torch.zeros(len(scores[key]), dtype=torch.bool) for key in scores}
    for key, unit in heads.units[: best[0]] + neurons.units[: best[1]]:
        masks[key][unit] = True
    return masks


def check_budget(costs: Mapping[str, Tensor], budget: float, floors: Mapping[str, int] | None = None) -> None:
    """Raise if the budget does not pay for the floors, or for a single unit.

    Args:
        costs: see `search`.
        budget: see `search`.
        floors: see `search`.

    Raises:
        ValueError: names the least share of the dense cost that will do.
    """
    floors = floors or {}
    dense = sum(float(table[-1]) for table in costs.values())
    forced = sum(float(table[min(floors.get(_role(key), 0), len(table) - 1)]) for key, table in costs.items())
    minimum = forced or min((float(table[1]) for table in costs.values()), default=0.0)
    if budget < minimum:
        raise ValueError(
            f"a budget of {budget / dense:.4g} of the dense cost is below the minimum structure, which costs "
            f"{minimum / dense:.4g} of it: ask for more, or lower min_heads or min_neurons."
        )


class _Ranking:
    """Units of one kind, best first; `spent[n]` and `gained[n]` are the first n units' cost and score."""

    def __init__(self, units: list[tuple[str, int]], cost: Tensor, score: Tensor, forced: int):
        zero = torch.zeros(1, dtype=torch.float64)
        self.units = units
        self.spent = torch.cat([zero, cost.cumsum(0)])
        self.gained = torch.cat([zero, score.cumsum(0)])
        self.forced = forced


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
    return _Ranking([units[index] for index in order], cost[order], score[order], forced)


def _role(key: str) -> str:
    return key.rpartition(".")[2]
