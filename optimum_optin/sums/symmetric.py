"""Sums of products that are known to be symmetric: what is below the diagonal is copied, when it is asked for."""

from __future__ import annotations

from torch import Tensor

_BLOCK = 64  # columns that are multiplied at once


class SymmetricSum:
    """A sum of products one^T other, each of them symmetric.

    Args:
        total: what the sum is at first, shape (features, features), symmetric; it is added to in place.
    """

    def __init__(self, total: Tensor):
        self._total = total
        self._copied = True  # whether what is below the diagonal is as it must be

    def add(self, one: Tensor, other: Tensor) -> None:
        """Add a product, computed in the type of its factors.

        Args:
            one: shape (rows, features).
            other: `one`, with rows multiplied by any numbers.
        """
        for first, last in _blocks(len(self._total)):
            above, columns = self._total[first:last, first:], one[:, first:last].T
            if above.dtype == one.dtype:  # in place: a product of this size is large, and gone at once
                above.addmm_(columns, other[:, first:])
            else:
                above += columns @ other[:, first:]
        self._copied = False

    def total(self) -> Tensor:
        """The sum, shape (features, features), which may be changed in place."""
        if not self._copied:
            for first, last in _blocks(len(self._total)):
                self._total[last:, first:last] = self._total[first:last, last:].T
                block = self._total[first:last, first:last]
                block.copy_(block.triu() + block.triu(1).T)
            self._copied = True
        return self._total


def gram(one: Tensor, other: Tensor) -> Tensor:
    """one^T other; see `SymmetricSum.add`."""
    sums = SymmetricSum(one.new_zeros(one.shape[1], one.shape[1]))
    sums.add(one, other)
    return sums.total()


def _blocks(features: int) -> list[tuple[int, int]]:
    return [(first, min(first + _BLOCK, features)) for first in range(0, features, _BLOCK)]
