"""Like tensors of different layers: of one shape, under names that differ in numbers alone."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from ..tainting.readers import Reader

Reached = Mapping[Reader, Tensor]


def kinds_of(tensors: Mapping[str, Tensor]) -> list[tuple[str, ...]]:
    """Names of tensors in kinds: of the same shape, and of names that differ in numbers alone."""
    kinds = defaultdict(list)
    for name, tensor in tensors.items():
        kinds[kind_of(name), tensor.shape, tensor.dtype].append(name)
    return [tuple(names) for names in kinds.values()]


def kind_of(name: str) -> str:
    """A tensor's name without the numbers of its layers."""
    return re.sub(r"\d+", "#", name)


def is_scale(tensor: Tensor) -> bool:
    """Whether a tensor has one number for each channel, in whatever shape: a scale or a bias, and no weight."""
    return sum(size > 1 for size in tensor.shape) < 2


def code_bits(count: int) -> int:
    """How many bits tell so many things apart."""
    return max(1, (count - 1).bit_length())
