"""Memory that runs out: PyTorch has an error of its own for that on a GPU, and a plain `RuntimeError` on a CPU."""

from __future__ import annotations

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and "you tried to allocate" in str(error)
    )
