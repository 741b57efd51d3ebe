"""The order in which the optimal brain surgeon removes what linears read, unit by unit (Hassibi & Stork 1993)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from scipy.optimize import isotonic_regression
from torch import Tensor

from ..sums.moments import cholesky

_DAMPING = 1e-2  # share of the mean diagonal of H
_PARTS = 64  # a step removes a 64th part of the units that are left, at least one
_CANDIDATES = 4  # and chooses them among four times as many
_ROWS = 256  # of a matrix that are copied at once
_NOISE = (0.0, 1e-7, 1e-6)  # shares of a metric's diagonal: as little as rounding leaves of sums in float32
_COMPACT = 0.8  # removed units lose their places when fewer than this share are left


@dataclass(frozen=True)
class Reader:
    """A linear or convolution that reads units.

    Args:
        weight: W, shape (outputs, inputs).
        covariance: H of its inputs, shape (inputs, inputs), whose type is that of all that is computed with it, or a
            function that makes it, so that it need not stay in memory; or, where there are too many, only its blocks
            along the diagonal, shape (blocks, block, block): then no unit is expected to take over from another.
        metrics: one or more Gamma at its outputs, each positive semi-definite, of shape (outputs, outputs).
        columns: which inputs are the units'; those of a unit follow each other.
        roots: `root_of` each metric, if that is known: it is the same for many readers.
    """

    weight: Tensor
    covariance: Tensor | Callable[[], Tensor]
    metrics: Sequence[Tensor]
    columns: slice = field(default_factory=lambda: slice(None))
    roots: Sequence[Tensor] | None = None


def removal_scores(readers: Sequence[Reader], units: int, shares: Sequence[float] | None = None) -> list[Tensor]:
    """What each unit costs when units are removed in a greedy order, with a refit of the rest after each.

    The order is greedy in a sum of the metrics over all readers; along it, each metric has its own costs.

    Args:
        readers: what reads the units, each with as many metrics.
        units: how many there are.
        shares: how much each metric counts in the order; `None` for all alike.

    Returns:
        For each metric, the cost of removing each unit, shape (units,), float64. Costs are pooled so that they never
        fall along the order, and made strictly increasing by a hair, so that ranking by them keeps the order.

    Raises:
        ValueError: a metric or the covariance is not finite.
    """
    if not all(metric.isfinite().all() for reader in readers for metric in reader.metrics):
        raise ValueError("gradients at its output are not finite")
    removal = _Removal(readers, units, shares or [1.0] * len(readers[0].metrics))
    order, increments = [], []
    left = units
    while left:
        count = max(1, left // _PARTS)
        places, costs = removal.cheapest(count)
        order.append(removal.units[places])
        increments.append(costs)
        removal.remove(places)
        left -= count
    device = readers[0].weight.device
    hair = torch.arange(1, units + 1, dtype=torch.float64, device=device)
    scores = []
    for costs in torch.cat(increments, dim=1):  # one metric's
        pooled = _pool(costs) * (1 + 1e-9 * hair) + 1e-300 * hair
        score = torch.zeros_like(pooled)
        score[torch.cat(order)] = pooled
        scores.append(score)
    return scores


def order_cost(outputs: int, features: int = 0) -> float:
    """About how many multiplications an order takes with one reader: metrics' roots, H^-1, and updates of both."""
    return 1.0 * outputs**3 + 2.0 * features**3 + 2.0 * outputs * features**2


class _Removal:
    """What is left of the readers of a group, after the refit: the same units in all of them.

    Some removed units still hold their places.
    """

    def __init__(self, readers: Sequence[Reader], units: int, shares: Sequence[float]):
        device = readers[0].weight.device
        self.shares = torch.tensor(shares, dtype=torch.float64, device=device)
        self.units = torch.arange(units, device=device)
        self.alive = torch.ones_like(self.units, dtype=torch.bool)
        self.parts = [(_Alone if _is_in_blocks(reader) else _Left).of(reader, units) for reader in readers]

    def cheapest(self, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` units to remove, one after another: their places, and costs of shape (metrics, count).

        They are chosen among a few times as many that are cheapest now. Each choice updates the costs of the others, so
        that of two units that can replace each other only one goes.
        """
        costs = _costs(self.parts)
        total = (self.shares @ costs).where(self.alive, torch.inf)
        if count == 1:
            place = total.argmin()[None]
            return place, costs[:, place]
        candidates = total.argsort(stable=True)[: _CANDIDATES * count]
        parts = [part.among(candidates) for part in self.parts]
        picked, paid = [], []
        for _ in range(count):
            costs = _costs(parts)
            total = self.shares @ costs
            total[picked] = torch.inf
            unit = int(total.argmin())
            picked.append(unit)
            paid.append(costs[:, unit])
            for part in parts:
                part.remove(unit)
        return candidates[picked], torch.stack(paid, dim=1)

    def remove(self, places: Tensor) -> None:
        """Remove units by their places."""
        for part in self.parts:
            part.remove(places)
        self.alive[places] = False
        if self.alive.double().mean() < _COMPACT:
            self.parts = [part.at(self.alive.nonzero().flatten()) for part in self.parts]
            self.units, self.alive = self.units[self.alive], self.alive[self.alive]


@dataclass
class _Left:
    """W and H^-1 of one reader after the refit.

    Args:
        weight: W^T R for the root R of each metric, side by side, shape (units * width, metrics * outputs): by rows, as
            those of a few units are read again and again.
        inverse: H^-1, shape (units * width, units * width).
        outputs: how many columns of `weight` each metric has.
        width: columns of W that a unit has.
    """

    weight: Tensor
    inverse: Tensor
    outputs: list[int]
    width: int

    @classmethod
    def of(cls, reader: Reader, units: int) -> _Left:
        make = reader.covariance.clone if isinstance(reader.covariance, Tensor) else reader.covariance
        roots = [root_of(metric.double()) for metric in reader.metrics] if reader.roots is None else reader.roots
        factor = cholesky(make, _DAMPING)
        inverse = torch.cholesky_inverse(factor, out=factor)
        weight, roots = reader.weight.to(inverse), [root.to(inverse) for root in roots]
        left = torch.cat([weight.T @ root for root in roots], dim=1)[reader.columns]
        inverse = inverse[reader.columns, reader.columns]  # the other inputs stay, and take over as well
        return cls(left, inverse, [root.shape[1] for root in roots], len(left) // units)

    def at(self, places: Tensor) -> _Left:
        """That of some units alone, as a copy."""
        columns = self._columns(places)
        inverse = self.inverse.new_empty(len(columns), len(columns))
        for rows, part in zip(columns.split(_ROWS), inverse.split(_ROWS), strict=True):
            part.copy_(self.inverse[rows][:, columns])
        return replace(self, weight=self.weight[columns], inverse=inverse)

    def among(self, places: Tensor) -> _Few:
        """Some units, that single ones of them are to be removed."""
        columns = self._columns(places)
        parts = self.weight[columns].double().split(self.outputs, dim=1)
        inverse = self.inverse[columns[:, None], columns].double()
        return _Few(torch.stack([part @ part.T for part in parts]), inverse, self.width)

    def remove(self, places: Tensor) -> None:
        """Remove S, in place: W <- W - W_S [H^-1_SS]^-1 H^-1_S:, and likewise H^-1."""
        cut = self._columns(places)
        held = self.inverse[cut]
        solved = torch.linalg.solve(held[:, cut], held)  # (cut, columns)
        self.weight.addmm_(solved.T, self.weight[cut], alpha=-1)
        self.inverse.addmm_(held.T, solved, alpha=-1)

    def costs(self) -> Tensor:
        """Cost of removing each unit alone: tr(W_B^T Gamma W_B [H^-1_BB]^-1), shape (metrics, units)."""
        parts = self.weight.split(self.outputs, dim=1)
        if self.width == 1:
            squares = torch.stack([torch.linalg.vector_norm(part, dim=1).square() for part in parts])
            return _single_costs(squares, self.inverse.diagonal())
        blocks = [part.unflatten(0, (-1, self.width)) for part in parts]
        return _block_costs(torch.stack([each @ each.mT for each in blocks]), _blocks(self.inverse, self.width))

    def _columns(self, places: Tensor) -> Tensor:
        return (places[:, None] * self.width + torch.arange(self.width, device=places.device)).flatten()


@dataclass
class _Few:
    """What some of the units of a reader cost, while single ones of them are removed.

    Products of columns are enough for that. There are few of them, so that float64, in which what is left of a product
    may be small, takes little.

    Args:
        grams: W^T Gamma W for each metric, shape (metrics, units * width, units * width), float64.
        inverse: H^-1, shape (units * width, units * width), float64.
        width: columns of a unit.
    """

    grams: Tensor
    inverse: Tensor
    width: int

    def remove(self, unit: int) -> None:
        """Remove a unit S, in place: W <- W - W_S V for V = [H^-1_SS]^-1 H^-1_S:, and likewise H^-1."""
        cut = slice(unit * self.width, (unit + 1) * self.width)
        read = self.inverse[cut].clone()
        solved = read / read[:, cut] if self.width == 1 else torch.linalg.solve(read[:, cut], read)
        self.inverse.addmm_(read.T, solved, alpha=-1)
        # (W - W_S V)^T Gamma (W - W_S V) = G - V^T A - A^T V
        halves = self.grams[:, cut] - self.grams[:, cut, cut] @ solved / 2
        solved = solved.expand_as(halves)
        self.grams.baddbmm_(torch.cat([solved, halves], 1).mT, torch.cat([halves, solved], 1), alpha=-1)

    def costs(self) -> Tensor:
        """See `_Left.costs`."""
        if self.width == 1:
            return _single_costs(self.grams.diagonal(dim1=1, dim2=2), self.inverse.diagonal())
        grams = torch.stack([_blocks(each, self.width) for each in self.grams])
        return _block_costs(grams, _blocks(self.inverse, self.width))


@dataclass
class _Alone:
    """What units cost in one reader, each whatever has become of the others.

    Args:
        fixed: cost of each, shape (metrics, units).
    """

    fixed: Tensor

    @classmethod
    def of(cls, reader: Reader, units: int) -> _Alone:
        """tr(W_B^T Gamma W_B H_B), summed over a unit's blocks B."""
        covariance, size = reader.covariance.double(), reader.covariance.shape[-1]
        weight = reader.weight[:, reader.columns].double().unflatten(1, (-1, size))  # (outputs, blocks, size)
        first, last, _ = reader.columns.indices(reader.weight.shape[1])
        blocks = covariance[first // size : last // size]
        by_metric = []
        for metric in reader.metrics:
            if not (metric.isfinite().all() and blocks.isfinite().all()):
                raise ValueError("sums of its activations are not finite: they are too large for float32")
            changed = torch.einsum("oq,qbs->obs", metric.double(), weight)
            costs = torch.einsum("obs,obt,bst->b", weight, changed, blocks)
            by_metric.append(costs.view(units, -1).sum(1).clamp_min(0))
        return cls(torch.stack(by_metric))

    def at(self, places: Tensor) -> _Alone:
        """That of some units alone."""
        return _Alone(self.fixed[:, places])

    among = at

    def remove(self, places: Tensor | int) -> None:
        """Nothing changes for the others."""

    def costs(self) -> Tensor:
        """Cost of removing each unit, shape (metrics, units)."""
        return self.fixed


def _is_in_blocks(reader: Reader) -> bool:
    return isinstance(reader.covariance, Tensor) and reader.covariance.dim() == 3


def _costs(parts: Sequence[_Left | _Few | _Alone]) -> Tensor:
    """Cost of removing each unit alone, from all that read it, shape (metrics, units)."""
    return torch.stack([part.costs() for part in parts]).sum(0)


def _single_costs(squares: Tensor, apart: Tensor) -> Tensor:
    """Costs of units that have a column each: w^T Gamma w / [H^-1]_jj.

    Args:
        squares: w^T Gamma w, shape (metrics, units).
        apart: diagonal of H^-1, shape (units,).
    """
    return squares.double().clamp_min(0) / apart.clamp_min(torch.finfo(apart.dtype).tiny)


def _block_costs(grams: Tensor, blocks: Tensor) -> Tensor:
    """Costs of units that have several columns: tr(W_B^T Gamma W_B [H^-1_BB]^-1), shape (metrics, units).

    Args:
        grams: W_B^T Gamma W_B, shape (metrics, units, width, width).
        blocks: H^-1_BB, shape (units, width, width); changed in place.
    """
    # Removed ones are 0, or what rounding has left of that.
    least = (1e-12 * blocks.diagonal(dim1=1, dim2=2).mean()).clamp_min(torch.finfo(blocks.dtype).tiny)
    blocks.diagonal(dim1=1, dim2=2).add_(least)
    # Not by `solve`: of a batch of matrices this large, it hangs, raises or errs with several threads (PyTorch
    # issue 142815).
    factors, failed = torch.linalg.cholesky_ex(blocks)
    alone = blocks.diagonal(dim1=1, dim2=2).clamp_min(least).sqrt().diag_embed()
    apart = torch.cholesky_inverse(torch.where(failed.bool()[:, None, None], alone, factors))
    return (grams * apart).sum((2, 3)).clamp_min(0).double()


def _blocks(matrix: Tensor, width: int) -> Tensor:
    """The blocks along the diagonal of a matrix, as a copy, shape (blocks, width, width)."""
    units = torch.arange(len(matrix) // width, device=matrix.device)
    return matrix.view(len(units), width, len(units), width)[units, :, units]


def root_of(metric: Tensor) -> Tensor:
    """R with metric = R R^T, but for what rounding may have left of each output.

    Rounding often leaves a metric a little below 0 in some direction: where a layer norm, which takes no notice of a
    mean, reads what is written, the metric is 0 along the ones.
    """
    scale = metric.diagonal().clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0)
    alike = inverse[:, None] * metric * inverse
    for noise in _NOISE:
        alike.diagonal().fill_(1 + noise)
        factor, failed = torch.linalg.cholesky_ex(alike)
        if not failed:
            return scale[:, None] * factor
    values, vectors = torch.linalg.eigh(metric)
    return vectors * values.clamp_min(0).sqrt()


def _pool(increments: Tensor) -> Tensor:
    """The non-decreasing sequence nearest to `increments`."""
    return torch.from_numpy(isotonic_regression(increments.numpy(force=True)).x).to(increments.device)
