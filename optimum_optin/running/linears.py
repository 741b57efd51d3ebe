"""Linears whichever way round they keep their weight: GPT-2's are transposed."""

from __future__ import annotations

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def weight_of(linear: nn.Module) -> Tensor:
    """A linear's weight as a view of shape (outputs, inputs): what is added to it in place is added to the weight."""
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight
