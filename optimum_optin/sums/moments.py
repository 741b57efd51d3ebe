"""Mean and covariance of streamed rows: memory does not grow with the rows, and an offset costs no digits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..running.memory import all_finite
from ..running.processes import add_up, add_up_symmetric, process_count
from ..stages.tensor_files import fill
from .symmetric import SymmetricSum

_FLOOR = 1e-5
_FAR = 10  # an offset is far if the mean square is more than so many times the variance
_WIDE = 4096  # features from which on sums and factors in float64 would take more memory than many a model
_ROWS = 256  # of a matrix that are in float64 at once, where the whole of it need not be
_NOISE = 1e-14  # share of a feature's mean square that rounding may leave as variance of a constant


def precision_of(features: int) -> torch.dtype:
    """The type of sums and factors of so many features."""
    return torch.float32 if features > _WIDE else torch.float64


class Moments:
    """Weighted sums over rows, from each of which the mean of the first rows is subtracted.

    In plain sums, the covariance of rows whose mean is a thousand times their spread would drown in rounding.

    Args:
        features: numbers in a row.
        device: where to keep the sums.
        dtype: type of the sums.

    Attributes:
        count: number of rows.
        weight: sum of their weights.
        shift: what is subtracted from every row, shape (features,).
        total: weighted sum of the shifted rows, shape (features,).
        gram: weighted sum of their outer products, shape (features, features).
    """

    def __init__(self, features: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64):
        zeros = {"dtype": dtype, "device": device}
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)
        self.shift = torch.zeros(features, dtype=torch.float64, device=device)
        self.total = torch.zeros(features, **zeros)
        self.gram = torch.zeros(features, features, **zeros)
        self._empty = True

    @property
    def gram(self) -> Tensor:
        """See `Moments`."""
        return self._products.total()

    @gram.setter
    def gram(self, total: Tensor) -> None:
        self._products = SymmetricSum(total)

    def add(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add rows of shape (rows, features), with weights of shape (rows,); `None` gives each the weight 1.

        Returns:
            The rows, shifted and weighted, of the same shape, float32.
        """
        if self._empty and len(rows):
            self.shift, self._empty = _at_least_single(rows).mean(0).double(), False
        shifted, weighted = self.shifted(rows, weights)
        self.count += len(rows)
        self.weight += len(rows) if weights is None else weights.sum().to(self.weight)
        self.total += weighted.sum(0)
        self._products.add(weighted, shifted)
        return weighted

    def shifted(self, rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows as they are summed, float32: shifted, and shifted and weighted; nothing is added."""
        rows = _at_least_single(rows)
        shifted = (rows - self.shift.to(rows)).float()
        return shifted, shifted if weights is None else shifted * weights.to(shifted)[:, None]

    def add_up(self) -> None:
        """Add the other processes' sums, in place."""
        add_up_moments([self])

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for `restore`."""
        return {name: getattr(self, name) for name in ("count", "weight", "shift", "total", "gram")}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the sums that `tensors` gave, before any `move`; raises a `ValueError` if they are of other shapes."""
        fill(self.tensors(), saved)
        self.settle()

    def move(self, shift: Tensor) -> None:
        """Change the shift that the sums are taken about, in place."""
        step = self.shift - shift
        total = self.total.double()
        moved, gram = total + self.weight * step, self.gram
        other = torch.empty_like(gram)  # a copy may hold the same sums
        for first in range(0, len(gram), _ROWS):
            rows = slice(first, first + _ROWS)
            other[rows] = gram[rows].to(torch.float64, copy=True).addr_(total[rows], step).addr_(step[rows], moved)
        self.gram = other
        self.total = moved.to(self.total)
        self.shift, self._empty = shift, False

    def settle(self) -> None:
        """Take the sums as they are now for all: without rows, the first that come give the shift."""
        self._empty = not self.count

    def merged(self, other: Moments) -> Moments:
        """The sums over the rows of both, as a new object."""
        if self._empty:
            return copy.copy(other)
        both, moved = copy.copy(self), copy.copy(other)
        moved.move(self.shift)
        for name in ("count", "weight", "total"):
            setattr(both, name, getattr(self, name) + getattr(moved, name))
        both.gram = moved.gram.add_(self.gram)  # a matrix of its own, by now
        return both

    def mean(self) -> Tensor:
        """The weighted mean, shape (features,), float64."""
        return self.shift + self.total / self.weight

    def scatter(self, centred: bool, dtype: torch.dtype = torch.float64) -> Tensor:
        """Weighted sum of the rows' outer products, shape (features, features).

        Args:
            centred: whether to subtract the mean from the rows.
            dtype: its type.
        """
        about_shift, mean = (self.total.double() / self.weight).to(dtype), self.mean().to(dtype)
        weight = self.weight.to(dtype)
        scatter = self.gram.to(dtype, copy=True)  # then in place: of wide linears, copies fill memory
        scatter.addr_(-weight * about_shift, about_shift)
        return scatter if centred else scatter.addr_(weight * mean, mean)

    def squares(self, centred: bool) -> Tensor:
        """The diagonal of `scatter`, shape (features,), float64."""
        spread = self.gram.diagonal().double() - self.total.double().square() / self.weight
        return spread if centred else spread + self.weight * self.mean().square()

    def factor(self, centred: bool, damping: Tensor) -> Tensor:
        """The Cholesky factor of `scatter` plus a damping of its diagonal, which is raised until there is one.

        It is in the type of `precision_of`, and memory holds no other matrix of its size; where float32 does not do, it
        is in float64.

        Args:
            centred: see `scatter`.
            damping: above 0, shape (features,), float64.

        Raises:
            ValueError: a number is not finite.
        """
        dtype = precision_of(len(self.total))
        if dtype is not torch.float64:
            factor = _factored(self.scatter(centred, dtype), damping)
            if factor is not None:
                return factor
        while (factor := _factored(self.scatter(centred), damping)) is None:
            damping = damping * 10
        return factor

    def covariance(self, centred: bool, dtype: torch.dtype = torch.float64) -> Tensor:
        """`scatter` with its `floor`, per weight; computed in float64, some rows at a time, as a new matrix.

        Args:
            centred: see `scatter`.
            dtype: its type.
        """
        about_shift, mean, floor = self.total.double() / self.weight, self.mean(), self.floor()
        gram, covariance = self.gram, self.gram.new_empty(self.gram.shape, dtype=dtype)
        for first in range(0, len(gram), _ROWS):
            rows = slice(first, first + _ROWS)
            part = gram[rows].to(torch.float64, copy=True)
            part.addr_(-self.weight * about_shift[rows], about_shift)
            if not centred:
                part.addr_(self.weight * mean[rows], mean)
            part.diagonal(offset=first).add_(floor[rows])
            covariance[rows] = part.div_(self.weight)
        return covariance

    def floor(self) -> Tensor:
        """What to add to the diagonal of `scatter` to keep it invertible, shape (features,), float64.

        It is a small part of the mean square (capped by the spread, so that a far offset does not count), and what
        rounding may leave of a constant feature.
        """
        spread, squares = self.squares(centred=True), self.squares(centred=False)
        return _FLOOR * torch.minimum(squares.mean(), _FAR * spread.mean().clamp_min(0)) + _NOISE * squares


def add_up_moments(moments: Sequence[Moments]) -> None:
    """Add the other processes' sums to several, in place, in few messages."""
    if process_count() == 1:
        return
    about_zero = [torch.cat([each.total + each.weight * each.shift, each.weight[None]]).double() for each in moments]
    add_up(*about_zero)
    for each, sums in zip(moments, about_zero, strict=True):
        each.move(sums[:-1] / sums[-1] if sums[-1] else torch.zeros_like(each.shift))
    add_up(*(getattr(each, name) for name in ("count", "weight", "total") for each in moments))
    add_up_symmetric(*(each.gram for each in moments))
    for each in moments:
        each.settle()


class BlockMoments:
    """The blocks along the diagonal of the covariance of streamed rows, where the whole of it would be too large.

    The sums are plain ones: unlike those of `Moments`, they are few enough for float64, whose digits allow for offsets.

    Args:
        blocks: how many there are.
        size: features in each.
        device: where to keep the sums.

    Attributes:
        weight: number of rows.
        total: sum of the rows, shape (blocks, size).
        gram: sums of their outer products in each block, shape (blocks, size, size).
    """

    def __init__(self, blocks: int, size: int, device: torch.device | str = "cpu"):
        self.weight = torch.zeros((), dtype=torch.float64, device=device)
        self.total = torch.zeros(blocks, size, dtype=torch.float64, device=device)
        self.gram = torch.zeros(blocks, size, size, dtype=torch.float64, device=device)

    def add(self, rows: Tensor) -> None:
        """Add rows of shape (rows, blocks * size)."""
        inside = rows.double().unflatten(1, self.total.shape)
        self.weight += len(rows)
        self.total += inside.sum(0)
        self.gram += torch.einsum("rbs,rbt->bst", inside, inside)

    def add_up(self) -> None:
        """Add the other processes' sums, in place."""
        add_up(self.weight, self.total, self.gram)

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for `restore`."""
        return {"weight": self.weight, "total": self.total, "gram": self.gram}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the sums that `tensors` gave; raises a `ValueError` if they are of other shapes."""
        fill(self.tensors(), saved)

    def covariance(self, centred: bool) -> Tensor:
        """The blocks, shape (blocks, size, size), float64; `centred` subtracts the mean from the rows."""
        blocks, mean = self.gram / self.weight, self.total / self.weight
        return blocks - mean[:, :, None] * mean[:, None] if centred else blocks


def _at_least_single(rows: Tensor) -> Tensor:
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def cholesky(make: Callable[[], Tensor], share: float) -> Tensor:
    """The Cholesky factor of a matrix plus a damping of its diagonal, raised tenfold until there is one.

    Args:
        make: makes the matrix, positive semi-definite but for rounding, shape (n, n), anew each time: the factor takes
            its place.
        share: damping, as a share of the mean diagonal.

    Raises:
        ValueError: a number is not finite.
    """
    matrix = make()
    damping = (share * matrix.diagonal().mean().clamp_min(1e-12)).expand(len(matrix))
    while (factor := _factored(matrix, damping)) is None:
        damping, matrix = damping * 10, make()
    return factor


def _factored(matrix: Tensor, damping: Tensor) -> Tensor | None:
    """The Cholesky factor of a matrix plus a damping of its diagonal, in its place; `None` if there is none.

    Raises:
        ValueError: a number is not finite.
    """
    if not (all_finite(matrix) and all_finite(damping)):
        raise ValueError("sums of its activations are not finite: they are too large for float32")
    matrix.diagonal().add_(damping)
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    return None if failed else matrix
