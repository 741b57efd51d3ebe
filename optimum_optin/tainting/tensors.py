"""A model's tensors, recognised in whatever views a forward pass makes of them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Axis:
    """One axis of a view of a model's tensor: which dimensions of that tensor it runs through.

    Args:
        tensor: the tensor's name.
        dims: dimensions in order; several where the view has made one axis of them.
        sizes: their sizes in the tensor.
        start: index in the tensor of the view's first entry; 0 where there are several dimensions.
        count: entries of the view's axis.
    """

    tensor: str
    dims: tuple[int, ...]
    sizes: tuple[int, ...]
    start: int
    count: int

    @property
    def whole(self) -> int:
        """How many entries the axis has if the view takes in all of the tensor."""
        return math.prod(self.sizes)

    @property
    def inner(self) -> int:
        """How many entries belong to one index of the first dimension."""
        return self.whole // self.sizes[0]

    def touched(self, dim: int, index: Tensor) -> Tensor:
        """Which of the view's entries lie at these indices of a dimension, as a mask, shape (count,)."""
        place = self.dims.index(dim)
        inner = math.prod(self.sizes[place + 1 :])
        entries = torch.arange(self.start, self.start + self.count, device=index.device)
        return torch.isin(entries // inner % self.sizes[place], index)


class Tensors:
    """The floating-point parameters and buffers of a model, by name and by the memory that they lie in.

    Tensors that share all of their memory count once, under the first name.
    """

    def __init__(self, model: nn.Module) -> None:
        self.by_name: dict[str, Tensor] = {}
        self._by_memory: dict[int, list[tuple[int, int, str]]] = {}
        self._bits: dict[str, int] = {}
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if not tensor.is_floating_point() or not tensor.numel() or self.name_of(tensor):
                continue
            self.by_name[name] = tensor.detach()
            self._bits[name] = 1 << len(self._bits)
            first = tensor.storage_offset()
            reach = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
            self._by_memory.setdefault(_memory(tensor), []).append((first, first + reach, name))

    def name_of(self, view: Tensor) -> str | None:
        """Name of the tensor that this is a view of, `None` if it is of no one's."""
        for first, last, name in self._by_memory.get(_memory(view), ()):
            if first <= view.storage_offset() <= last:
                return name
        return None

    def bit(self, name: str) -> int:
        """A number with one bit, the tensor's own: sets of tensors are sums of such."""
        return self._bits[name]

    def names_of(self, bits: int) -> list[str]:
        """The tensors whose bits these are."""
        return [self._names[place] for place in bits_in(bits)]

    @cached_property
    def _names(self) -> list[str]:
        return list(self._bits)

    def axis(self, view: Tensor, axis: int) -> Axis | None:
        """What an axis of a view runs through; `None` if it is no view, or no plain one."""
        name = self.name_of(view)
        if name is None or view.shape[axis] < 2:
            return None
        tensor, count, step = self.by_name[name], view.shape[axis], view.stride(axis)
        shape, strides = tuple(tensor.shape), tensor.stride()
        for dim in range(tensor.dim()):
            if strides[dim] != step or shape[dim] < 2:
                continue
            start = (view.storage_offset() - tensor.storage_offset()) // step % shape[dim]
            if start + count <= shape[dim]:
                return Axis(name, (dim,), (shape[dim],), start, count)
            first = dim
            while first and math.prod(shape[first : dim + 1]) < count:
                if strides[first - 1] != strides[first] * shape[first]:
                    break
                first -= 1
            if math.prod(shape[first : dim + 1]) == count:
                return Axis(name, tuple(range(first, dim + 1)), shape[first : dim + 1], 0, count)
        return None


def bits_in(number: int) -> Iterator[int]:
    """The places of the bits of a number."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
