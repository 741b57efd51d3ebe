"""Sums of products that are known to be symmetric: what is below the diagonal takes no memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from ..running.processes import add_up
from ..stages.tensor_files import fill

# Rows that are multiplied and kept together: a 16th of all, at least 128. Fewer would take most of their time for
# reading the other factor; more would keep more of what is below the diagonal.
_SHARE = 16
_LEAST = 128
_BAND = 64  # rows that are worked on at once otherwise, which takes copies

Band = tuple[slice, Tensor]
"""Some rows of a symmetric matrix, and their numbers from the diagonal on, shape (rows, features - first row). Those
below the diagonal, in the square that they begin with, may be anything."""


class SymmetricSum:
    """A sum of products one^T other, each of them symmetric.

    Args:
        features: how many rows and columns it has.
        device: where to keep it.
        dtype: its type.

    Attributes:
        packed: all its numbers, in one row.
    """

    def __init__(self, features: int, device: torch.device | str, dtype: torch.dtype):
        self._features = features
        self.packed = torch.zeros(numbers_of(features), device=device, dtype=dtype)

    def bands(self) -> Iterator[Band]:
        """All rows, some at a time, to be changed in place."""
        for rows, strip in self._strips():
            for some in _parts(len(strip), _BAND):
                yield slice(rows.start + some.start, rows.start + some.stop), strip[some, some.start :]

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add a product, computed in the type of its factors.

        Args:
            one: shape (rows, features).
            other: `one`, with rows multiplied by any numbers.
        """
        for rows, strip in self._strips():
            add_product(strip, one[:, rows].T, other[:, rows.start :])

    def _strips(self) -> Iterator[Band]:
        """All rows, as they are multiplied and kept."""
        start = 0
        for rows in _strips_of(self._features):
            shape = rows.stop - rows.start, self._features - rows.start
            yield rows, self.packed[start : start + shape[0] * shape[1]].view(shape)
            start += shape[0] * shape[1]


def add_product(total: Tensor, one: Tensor, other: Tensor) -> None:
    """Add one @ other, computed in the type of its factors, in place: a large product is no tensor of its own."""
    if total.dtype == one.dtype:
        total.addmm_(one, other)
    else:
        total.add_(one @ other)


def numbers_of(features: int) -> int:
    """How many numbers a `SymmetricSum` keeps."""
    return sum((rows.stop - rows.start) * (features - rows.start) for rows in _strips_of(features))


def whole(bands: Iterable[Band], features: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A symmetric matrix of its bands, shape (features, features), column by column: so LAPACK works in its place."""
    matrix = torch.empty(features, features, device=device, dtype=dtype).mT
    for rows, band in bands:
        square, rest = band.split([len(band), band.shape[1] - len(band)], dim=1)
        matrix[rows, rows] = square.triu() + square.triu(1).mT
        matrix[rows.stop :, rows] = rest.mT
        matrix[rows, rows.stop :] = rest
    return matrix


class Grams:
    """Sums of the outer products of rows, one matrix for each name, in float32.

    Args:
        features: numbers in a row.
        device: where to keep them.
    """

    def __init__(self, features: int, device: torch.device | str):
        self._features, self._device = features, device
        self._sums: dict[str, SymmetricSum] = {}

    def expect(self, name: str) -> None:
        """Have a sum of that name, which is 0 if nothing is added."""
        if name not in self._sums:
            self._sums[name] = SymmetricSum(self._features, self._device, torch.float32)

    def add(self, name: str, rows: Tensor) -> None:
        """Add rows of shape (rows, features), float32, to a sum that is expected."""
        self._sums[name].add(rows, rows)

    def matrix(self, name: str) -> Tensor:
        """The sum of that name, shape (features, features), float64, as a new matrix."""
        return whole(self._sums[name].bands(), self._features, self._device, torch.float64)

    def add_up(self) -> None:
        """Add the other processes' sums, in place."""
        add_up(*self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The sums by name, for `restore`."""
        return {name: each.packed for name, each in self._sums.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold the sums that `tensors` gave; raises a `ValueError` if they are of other shapes."""
        for name in saved:
            self.expect(name)
        fill(self.tensors(), saved)


def _strips_of(features: int) -> Iterator[slice]:
    return _parts(features, max(_LEAST, features // _SHARE))


def _parts(count: int, size: int) -> Iterator[slice]:
    for first in range(0, count, size):
        yield slice(first, min(first + size, count))
