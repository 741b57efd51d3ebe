"""Whether all numbers of a tensor are finite, found without a copy of it: a table of embeddings may be a gigabyte."""

from __future__ import annotations

from torch import Tensor


def all_finite(values: Tensor) -> bool:
    """Whether none of a tensor's numbers is NaN or infinite."""
    if not values.numel() or not values.is_floating_point():
        return bool(values.isfinite().all())
    least, largest = values.aminmax()  # NaN if there is one
    return bool(least.isfinite() & largest.isfinite())
