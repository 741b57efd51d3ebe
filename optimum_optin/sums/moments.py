"""Mean and covariance of streamed rows: memory does not grow with the rows, and an offset costs no digits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from ..running.memory import all_finite, at_least_single
from ..running.processes import add_up, process_count
from ..stages.tensor_files import fill
from .symmetric import Band, SymmetricSum, whole

_FLOOR = 1e-5
_FAR = 10  # an offset is far if the mean square is more than so many times the variance
_WIDE = 1024  # features from which on sums and factors in float64 take much memory and time; float32 does as well
_LEAST = 1e-12  # damping where all is 0
_NOISE = 1e-14  # share of a feature's mean square that rounding may leave as variance of a constant


def is_wide(features: int) -> bool:
    """Whether sums of so many features are large."""
    return features > _WIDE


def precision_of(features: int) -> torch.dtype:
    """The type of sums and factors of so many features."""
    return torch.float32 if is_wide(features) else torch.float64


class Moments:
    """Weighted sums over rows, from each of which a shift is subtracted: the mean of the first rows, if none is given.

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
        products: weighted sum of their outer products.
    """

    def __init__(self, features: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64):
        zeros = {"dtype": dtype, "device": device}
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self.weight = torch.zeros((), dtype=torch.float64, device=device)
        self.shift = torch.zeros(features, dtype=torch.float64, device=device)
        self.total = torch.zeros(features, **zeros)
        self.products = SymmetricSum(features, **zeros)
        self._empty = True

    def begin(self, shift: Tensor) -> None:
        """Take the sums about this shift, shape (features,), float64; for sums that have no rows yet."""
        self.shift, self._empty = shift, False

    def add(self, rows: Tensor, weights: Tensor | None = None) -> Tensor:
        """Add rows of shape (rows, features), with weights of shape (rows,); `None` gives each the weight 1.

        Returns:
            The rows, shifted and weighted, of the same shape, float32.
        """
        if self._empty and len(rows):
            self.shift, self._empty = at_least_single(rows).mean(0).double(), False
        shifted, weighted = self.shifted(rows, weights)
        self.count += len(rows)
        self.weight += len(rows) if weights is None else weights.sum().to(self.weight)
        self.total += weighted.sum(0)
        self.products.add(weighted, shifted)
        return weighted

    def shifted(self, rows: Tensor, weights: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Rows as they are summed, float32: shifted, and shifted and weighted; nothing is added."""
        rows = at_least_single(rows)
        shifted = (rows - self.shift.to(rows)).float()
        return shifted, shifted if weights is None else shifted * weights.to(shifted)[:, None]

    def add_up(self) -> None:
        """Add the other processes' sums, in place."""
        add_up_moments([self])

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for `restore`."""
        sums = {name: getattr(self, name) for name in ("count", "weight", "shift", "total")}
        return sums | {"products": self.products.packed}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the sums that `tensors` gave, before any `move`; raises a `ValueError` if they are of other shapes."""
        fill(self.tensors(), saved)
        self.settle()

    def move(self, shift: Tensor) -> None:
        """Change the shift that the sums are taken about, in place."""
        step, before = self.shift - shift, self.total.double()
        after = before + self.weight * step
        for rows, band in self.products.bands():
            rest = slice(rows.start, None)
            # Not by `addr_`, which rounds some columns in another way.
            moved = band.to(torch.float64, copy=True).add_(step[rows].outer(before[rest]))
            band.copy_(moved.add_(after[rows].outer(step[rest])))
        self.total, self.shift, self._empty = after.to(self.total), shift, False

    def settle(self) -> None:
        """Take the sums as they are now for all: without rows, the first that come give the shift."""
        self._empty = not self.count

    def merged(self, other: Moments) -> Moments:
        """The sums over the rows of both, to be read while neither changes.

        Raises:
            ValueError: they are about different shifts.
        """
        if self._empty:
            return other
        if not torch.equal(self.shift, other.shift):
            raise ValueError("sums about different shifts cannot be merged: begin them together")
        both = copy.copy(self)
        for name in ("count", "weight", "total"):
            setattr(both, name, getattr(self, name) + getattr(other, name))
        both.products = _Both(self.products, other.products)
        return both

    def mean(self) -> Tensor:
        """The weighted mean, shape (features,), float64."""
        return self.shift + self.total / self.weight

    def scatter(self, centred: bool, dtype: torch.dtype = torch.float64) -> Tensor:
        """Weighted sum of the rows' outer products, shape (features, features), as a new matrix for LAPACK.

        Args:
            centred: whether to subtract the mean from the rows.
            dtype: its type.
        """
        return self._whole(self._scattered(centred, dtype), dtype)

    def squares(self, centred: bool) -> Tensor:
        """The diagonal of `scatter`, shape (features,), float64."""
        diagonal = torch.cat([self.total[:0], *(band.diagonal() for _, band in self.products.bands())]).double()
        spread = diagonal - self.total.double().square() / self.weight
        return spread if centred else self._about_zero(spread)

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
        """`scatter` with its `floor`, per weight; computed in float64, some rows at a time, as a new matrix for LAPACK.

        Args:
            centred: see `scatter`.
            dtype: its type.
        """
        floor = self.floor()

        def bands() -> Iterator[Band]:
            for rows, band in self._scattered(centred, torch.float64):
                band.diagonal().add_(floor[rows])
                yield rows, band.div_(self.weight)

        return self._whole(bands(), dtype)

    def damping(self, centred: bool, share: float) -> Tensor:
        """A share of the mean diagonal of `scatter`, and its `floor`, shape (features,), float64.

        Args:
            centred: see `scatter`.
            share: the share; may be 0.
        """
        spread = self.squares(centred=True)  # of merged sums, this adds all products
        squares = spread if centred else self._about_zero(spread)
        return share * squares.mean().clamp_min(0) + self._floor(spread) + _LEAST

    def floor(self) -> Tensor:
        """What to add to the diagonal of `scatter` to keep it invertible, shape (features,), float64.

        It is a small part of the mean square (capped by the spread, so that a far offset does not count), and what
        rounding may leave of a constant feature.
        """
        return self._floor(self.squares(centred=True))

    def _floor(self, spread: Tensor) -> Tensor:
        """See `floor`; of the `squares` that are centred."""
        squares = self._about_zero(spread)
        return _FLOOR * torch.minimum(squares.mean(), _FAR * spread.mean().clamp_min(0)) + _NOISE * squares

    def squares_of(self, weight: Tensor) -> Tensor:
        """Weighted sum over the shifted rows of ||weight row||^2, float64; its shape is (outputs, features)."""
        total, weight = torch.zeros_like(self.weight), weight.to(self.total)
        for rows, band in self.products.bands():
            twice = 2 * band.triu(1)
            twice.diagonal().add_(band.diagonal())
            total += (weight[:, rows] @ twice).mul_(weight[:, rows.start :]).sum(dtype=torch.float64)
        return total

    def _scattered(self, centred: bool, dtype: torch.dtype) -> Iterator[Band]:
        """The bands of `scatter`."""
        about_shift, mean = (self.total.double() / self.weight).to(dtype), self.mean().to(dtype)
        weight = self.weight.to(dtype)
        for rows, band in self.products.bands():
            moved, rest = band.to(dtype, copy=True), slice(rows.start, None)
            moved -= about_shift[rows].outer(weight * about_shift[rest])
            if not centred:
                moved += mean[rows].outer(weight * mean[rest])
            yield rows, moved

    def _about_zero(self, spread: Tensor) -> Tensor:
        """The `squares` that are not centred, of those that are."""
        return spread + self.weight * self.mean().square()

    def _whole(self, bands: Iterator[Band], dtype: torch.dtype) -> Tensor:
        return whole(bands, len(self.total), self.total.device, dtype)


class _Both:
    """The sum of two sums of products, which are added whenever they are read."""

    def __init__(self, one: SymmetricSum, other: SymmetricSum):
        self._one, self._other = one, other

    def bands(self) -> Iterator[Band]:
        """See `SymmetricSum`; not to be changed."""
        for (rows, band), (_, other) in zip(self._one.bands(), self._other.bands(), strict=True):
            yield rows, band + other


def add_up_moments(moments: Sequence[Moments]) -> None:
    """Add the other processes' sums to several, in place, in few messages."""
    if process_count() == 1:
        return
    about_zero = [torch.cat([each.total + each.weight * each.shift, each.weight[None]]).double() for each in moments]
    add_up(*about_zero)
    for each, sums in zip(moments, about_zero, strict=True):
        each.move(sums[:-1] / sums[-1] if sums[-1] else torch.zeros_like(each.shift))
    add_up(*(getattr(each, name) for name in ("count", "weight", "total") for each in moments))
    add_up(*(each.products.packed for each in moments))
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

    LAPACK copies a matrix that is not given column by column, as `whole` makes it.

    Raises:
        ValueError: a number is not finite.
    """
    if not (all_finite(matrix) and all_finite(damping)):
        raise ValueError("sums of its activations are not finite: they are too large for float32")
    matrix.diagonal().add_(damping)
    failed = torch.empty((), dtype=torch.int32, device=matrix.device)
    torch.linalg.cholesky_ex(matrix, out=(matrix, failed))
    return None if failed else matrix
