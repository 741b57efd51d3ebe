"""Values that are a model's input already, as a tensor that measures nothing but them: no gradient, no 8-bit floats."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor


def tensor_of(value: Any) -> Tensor:
    """A tensor of a tensor, an array, numbers, or lists of these, which NumPy may not take: its type, device, gradient.

    Raises:
        TypeError, ValueError, RuntimeError: they are no numbers, or of different shapes.
    """
    if isinstance(value, Tensor):
        value = value.detach()
        # PyTorch cannot compute with floating-point numbers of 8 bits, nor tell whether they are finite.
        return value.float() if value.is_floating_point() and value.element_size() == 1 else value
    if isinstance(value, (list, tuple)) and isinstance(_first(value), Tensor):
        return torch.stack([tensor_of(each) for each in value])
    return torch.tensor(np.asarray(value))  # a copy, which may be written to


def _first(value: Any) -> Any:
    while isinstance(value, (list, tuple)) and value:
        value = value[0]
    return value
