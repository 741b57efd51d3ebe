"""The optimal brain surgeon's removal order for the inputs of a linear (Hassibi & Stork 1993), block by block."""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 1e-2  # of the mean diagonal of H
_PARTS = 128  # a step removes this part of the units that are left, or one
_CANDIDATES = 4  # how many times as many are weighed for it


def removal_scores(weight: Tensor, covariance: Tensor, metric: Tensor, width: int) -> Tensor:
    """What each unit costs when it is removed in greedy order and the rest is refitted each time.

    Args:
        weight: W of the consumer, shape (outputs, units * width).
        covariance: H of its inputs, shape (units * width, units * width).
        metric: Gamma at its outputs, shape (outputs, outputs), positive semi-definite.
        width: input columns per unit.

    Returns:
        Cost of removal per unit, pooled so that it never falls along the order of removal, and made
        strictly increasing by a hair so that ranking by it keeps the order; shape (units,), float64.
    """
    units = weight.shape[1] // width
    values, vectors = torch.linalg.eigh(metric.double())
    root = vectors * values.clamp_min(0).sqrt()  # metric = root root^T
    left = root.T @ weight.double()  # (outputs, units * width)
    diagonal = covariance.diagonal().mean().clamp_min(1e-12)
    eye = torch.eye(len(covariance), dtype=torch.float64, device=covariance.device)
    inverse = torch.linalg.inv(covariance.double() + _DAMPING * diagonal * eye)

    columns = torch.arange(units * width, device=weight.device).view(units, width)
    alive = torch.arange(units, device=weight.device)
    order, increments = [], []
    while len(alive):
        count = max(1, len(alive) // _PARTS) if width == 1 else 1
        chosen, costs = _cheapest(left, inverse, width, count)
        increments.append(costs)
        order.append(alive[chosen])
        cut = columns[: len(alive)][chosen].flatten()
        kept = torch.ones(len(alive) * width, dtype=torch.bool, device=weight.device)
        kept[cut] = False
        # Removing S: W <- W - W_S [H^-1_SS]^-1 H^-1_S:, and likewise H^-1.
        solved = torch.linalg.solve(inverse[cut][:, cut], inverse[cut][:, kept])  # (cut, kept)
        left = left[:, kept] - left[:, cut] @ solved
        inverse = inverse[kept][:, kept] - inverse[kept][:, cut] @ solved
        alive = alive[kept.view(-1, width)[:, 0]]
    hair = torch.arange(1, units + 1, dtype=torch.float64, device=weight.device)
    pooled = _pool(torch.cat(increments)) * (1 + 1e-9 * hair) + 1e-300 * hair
    scores = torch.zeros(units, dtype=torch.float64, device=weight.device)
    scores[torch.cat(order)] = pooled
    return scores


def _cheapest(left: Tensor, inverse: Tensor, width: int, count: int) -> tuple[Tensor, Tensor]:
    """The next `count` units to go, one after another, and what each costs then; both of shape (count,).

    Among the few times `count` units that are cheapest now, each removal updates the others' costs, so that of
    two units that can replace each other only one goes.
    """
    costs = _costs(left, inverse, width)
    if count == 1:
        chosen = costs.argmin()[None]
        return chosen, costs[chosen].clamp_min(0)
    candidates = costs.argsort(stable=True)[: _CANDIDATES * count]
    left, inverse = left[:, candidates], inverse[candidates][:, candidates]
    picked, paid = [], []
    for _ in range(count):
        costs = _costs(left, inverse, 1)
        costs[picked] = torch.inf
        unit = int(costs.argmin())
        picked.append(unit)
        paid.append(costs[unit].clamp_min(0))
        row = inverse[unit] / inverse[unit, unit]
        left = left - left[:, unit, None] * row
        inverse = inverse - inverse[:, unit, None] * row
    return candidates[picked], torch.stack(paid)


def _costs(left: Tensor, inverse: Tensor, width: int) -> Tensor:
    """Cost of removing each unit alone: tr(W_B^T Gamma W_B [H^-1_BB]^-1), shape (units,)."""
    units = left.shape[1] // width
    if width == 1:
        return left.square().sum(0) / inverse.diagonal().clamp_min(1e-300)
    index = torch.arange(units, device=left.device)
    blocks = inverse.view(units, width, units, width)[index, :, index]  # (units, width, width)
    grams = torch.einsum("oua,oub->uab", left.view(-1, units, width), left.view(-1, units, width))
    return torch.linalg.solve(blocks, grams).diagonal(dim1=1, dim2=2).sum(1)


def _pool(increments: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to `increments` (isotonic regression by pooling neighbours)."""
    blocks: list[list[float]] = []  # [mean, length]
    for value in increments.tolist():
        blocks.append([value, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            mean, length = blocks.pop()
            blocks[-1] = [
                (blocks[-1][0] * blocks[-1][1] + mean * length) / (blocks[-1][1] + length),
                blocks[-1][1] + length,
            ]
    pooled = [mean for mean, length in blocks for _ in range(length)]
    return torch.tensor(pooled, dtype=torch.float64, device=increments.device)
