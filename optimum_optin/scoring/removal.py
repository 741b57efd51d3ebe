"""The order in which the optimal brain surgeon removes inputs of a linear, unit by unit (Hassibi & Stork 1993)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from ..passes.moments import cholesky

_DAMPING = 1e-2  # share of the mean diagonal of H
_PARTS = 64  # a step removes a 64th part of the units that are left, at least one
_CANDIDATES = 4  # and chooses them among four times as many
_COMPACT = 0.8  # removed units lose their places when fewer than this share are left


def removal_scores(weight: Tensor, covariance: Tensor, metrics: Sequence[Tensor], width: int) -> list[Tensor]:
    """What each unit costs when units are removed in a greedy order, with a refit of the rest after each.

    The order is greedy in the sum of the metrics; along it, each metric has its own costs.

    Args:
        weight: W of the consumer, shape (outputs, units * width).
        covariance: H of the consumer's inputs, shape (units * width, units * width).
        metrics: one or more Gamma at its outputs, each positive semi-definite, of shape (outputs, outputs).
        width: input columns per unit.

    Returns:
        For each metric, the cost of removing each unit, shape (units,), float64. Costs are pooled so that they never
        fall along the order, and made strictly increasing by a hair, so that ranking by them keeps the order.

    Raises:
        ValueError: a metric or the covariance is not finite.
    """
    if not all(metric.isfinite().all() for metric in metrics):
        raise ValueError("gradients at its output are not finite")
    units = weight.shape[1] // width
    removal = _Removal(weight.double(), covariance.double(), [metric.double() for metric in metrics], width)
    order, increments = [], []
    left = units
    while left:
        count = max(1, left // _PARTS) if width == 1 else 1
        places, costs = removal.cheapest(count)
        order.append(removal.units[places])
        increments.append(costs)
        removal.remove(places)
        left -= count
    hair = torch.arange(1, units + 1, dtype=torch.float64, device=weight.device)
    scores = []
    for costs in torch.cat(increments, dim=1):  # one metric's
        pooled = _pool(costs) * (1 + 1e-9 * hair) + 1e-300 * hair
        score = torch.zeros_like(pooled)
        score[torch.cat(order)] = pooled
        scores.append(score)
    return scores


class _Removal:
    """W and H^-1 after the refit, for the units that are left and some removed ones that still hold their places."""

    def __init__(self, weight: Tensor, covariance: Tensor, metrics: list[Tensor], width: int):
        self.width = width
        self.units = torch.arange(weight.shape[1] // width, device=weight.device)
        self.alive = torch.ones_like(self.units, dtype=torch.bool)
        roots = [_root(metric) for metric in metrics]
        self.outputs = [root.shape[1] for root in roots]
        self.left = torch.cat([root.T @ weight for root in roots])  # (metrics * outputs, units * width)
        diagonal = covariance.diagonal().mean().clamp_min(1e-12)
        damping = (_DAMPING * diagonal).expand(len(covariance))
        self.inverse = torch.cholesky_inverse(cholesky(covariance, damping))

    def cheapest(self, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` units to remove, one after another: their places, and costs of shape (metrics, count).

        They are chosen among a few times as many that are cheapest now. Each choice updates the costs of the others, so
        that of two units that can replace each other only one goes.
        """
        costs = _costs(self.left, self.inverse, self.outputs, self.width)
        total = costs.sum(0).where(self.alive, torch.inf)
        if count == 1:
            place = total.argmin()[None]
            return place, costs[:, place]
        candidates = total.argsort(stable=True)[: _CANDIDATES * count]
        left, inverse = self.left[:, candidates], self.inverse[candidates][:, candidates]
        picked, paid = [], []
        for _ in range(count):
            costs = _costs(left, inverse, self.outputs, 1)
            total = costs.sum(0)
            total[picked] = torch.inf
            unit = int(total.argmin())
            picked.append(unit)
            paid.append(costs[:, unit])
            row = inverse[unit] / inverse[unit, unit]
            left = left - left[:, unit, None] * row
            inverse = inverse - inverse[:, unit, None] * row
        return candidates[picked], torch.stack(paid, dim=1)

    def remove(self, places: Tensor) -> None:
        """Remove S: W <- W - W_S [H^-1_SS]^-1 H^-1_S:, and likewise H^-1."""
        cut = self._columns()[places].flatten()
        solved = torch.linalg.solve(self.inverse[cut][:, cut], self.inverse[cut])  # (cut, columns)
        self.left.addmm_(self.left[:, cut], solved, alpha=-1)
        self.inverse.addmm_(self.inverse[:, cut], solved, alpha=-1)
        self.alive[places] = False
        if self.alive.double().mean() < _COMPACT:
            rest = self._columns()[self.alive].flatten()
            self.left, self.inverse = self.left[:, rest], self.inverse[rest][:, rest]
            self.units, self.alive = self.units[self.alive], self.alive[self.alive]

    def _columns(self) -> Tensor:
        return torch.arange(len(self.inverse), device=self.units.device).view(-1, self.width)


def _root(metric: Tensor) -> Tensor:
    """R with metric = R R^T."""
    values, vectors = torch.linalg.eigh(metric)
    return vectors * values.clamp_min(0).sqrt()


def _costs(left: Tensor, inverse: Tensor, outputs: list[int], width: int) -> Tensor:
    """Cost of removing each unit alone: tr(W_B^T Gamma W_B [H^-1_BB]^-1), shape (metrics, units)."""
    units = left.shape[1] // width
    parts = left.split(outputs)
    if width == 1:
        return torch.stack([part.square().sum(0) for part in parts]) / inverse.diagonal().clamp_min(1e-300)
    index = torch.arange(units, device=left.device)
    blocks = inverse.view(units, width, units, width)[index, :, index]  # (units, width, width)
    columns = [part.view(-1, units, width) for part in parts]
    grams = torch.stack([torch.einsum("oua,oub->uab", each, each) for each in columns])
    blocks = blocks + 1e-12 * blocks.diagonal(dim1=1, dim2=2).mean() * torch.eye(width).to(blocks)  # removed ones are 0
    return torch.linalg.solve(blocks, grams).diagonal(dim1=2, dim2=3).sum(2).clamp_min(0)


def _pool(increments: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to `increments`."""
    return torch.from_numpy(isotonic_regression(increments.numpy(force=True)).x).to(increments.device)
