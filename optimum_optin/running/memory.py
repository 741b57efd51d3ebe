"""Memory: how its end is told, how it is given back, and what takes little or none of it."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory.

    PyTorch has an error of its own for that on a GPU, and a plain `RuntimeError` on a CPU.
    """
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "you tried to allocate" in str(error)
    )


def give_back() -> None:
    """Let the C library give back to the system what is free between what is in use, as far as it can.

    It keeps what it was given for tensors below 32 MB, of which long runs leave holes.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):  # another C library than glibc
        return


def all_finite(values: Tensor) -> bool:
    """Whether none of a tensor's numbers is NaN or infinite, without a copy of it."""
    if not values.numel() or not values.is_floating_point():
        return bool(values.isfinite().all())
    if values.dim() == 2 and not values.is_contiguous():
        values = values.mT  # what lies column by column, `aminmax` would copy
    least, largest = values.aminmax()  # NaN if there is one
    return bool(least.isfinite() & largest.isfinite())


def at_least_single(values: Tensor) -> Tensor:
    """Values in float32, or in their own type where that is wider."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
