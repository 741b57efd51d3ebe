"""Sums of products that are known to be symmetric: what is below the diagonal takes no memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

_BLOCK = 64  # rows that are multiplied at once

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
        packed: all its numbers, in one row: band after band.
    """

    def __init__(self, features: int, device: torch.device | str, dtype: torch.dtype):
        self._features = features
        self.packed = torch.zeros(numbers_of(features), device=device, dtype=dtype)

    def bands(self) -> Iterator[Band]:
        """All rows, some at a time, to be changed in place."""
        start = 0
        for rows in _blocks(self._features):
            shape = rows.stop - rows.start, self._features - rows.start
            yield rows, self.packed[start : start + shape[0] * shape[1]].view(shape)
            start += shape[0] * shape[1]

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add a product, computed in the type of its factors.

        Args:
            one: shape (rows, features).
            other: `one`, with rows multiplied by any numbers.
        """
        for rows, band in self.bands():
            columns, rest = one[:, rows].T, other[:, rows.start :]
            if band.dtype == one.dtype:  # in place: a product of this size is large, and gone at once
                band.addmm_(columns, rest)
            else:
                band.add_(columns @ rest)


def numbers_of(features: int) -> int:
    """How many numbers a `SymmetricSum` keeps."""
    return sum((rows.stop - rows.start) * (features - rows.start) for rows in _blocks(features))


def whole(bands: Iterable[Band], features: int, device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A symmetric matrix of its bands, shape (features, features), column by column: so LAPACK works in its place."""
    matrix = torch.empty(features, features, device=device, dtype=dtype).mT
    for rows, band in bands:
        square, rest = band.split([len(band), band.shape[1] - len(band)], dim=1)
        matrix[rows, rows] = square.triu() + square.triu(1).mT
        matrix[rows.stop :, rows] = rest.mT
        matrix[rows, rows.stop :] = rest
    return matrix


def gram(one: Tensor, other: Tensor) -> Tensor:
    """one^T other; see `SymmetricSum.add`."""
    features = one.shape[1]
    sums = SymmetricSum(features, one.device, one.dtype)
    sums.add(one, other)
    return whole(sums.bands(), features, one.device, one.dtype)


def _blocks(features: int) -> Iterator[slice]:
    for first in range(0, features, _BLOCK):
        yield slice(first, min(first + _BLOCK, features))
