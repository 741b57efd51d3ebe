"""Contractions with a parameter (linears, convolutions, matrix products) among the operations of a forward pass.

Whatever a module or a function is called, PyTorch runs it as one of a handful of operations: these are the table here.
A convolution in groups mixes no channels of different groups, so it is left to be an operation like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .readers import Reader
from .tensors import Axis, Tensors

aten = torch.ops.aten


@dataclass(frozen=True)
class Contraction:
    """One call of an operation that sums over the channels of an input, with a parameter.

    Args:
        place: which argument the input is.
        channels: the input's axis that is summed over.
        summed: the parameter's axis that is summed over.
        batch: the parameter's axis that runs along the input's first one, in a product by batches.
        written: axis of the output -> the axis of the parameter, or of the bias, that it runs along.
    """

    place: int
    channels: int
    summed: Axis
    written: tuple[tuple[int, Axis], ...]
    batch: Axis | None = None


@dataclass(frozen=True)
class Rearranged:
    """One call of such an operation with a weight that was rearranged before.

    Args:
        reader: of the input's channels; where the product is one by batches, a batch's channels follow each other.
        place: which argument the input is.
        channels: the input's axis that is summed over.
        weight: which argument the weight is.
        summed: the weight's axis that is summed over.
        bias: which argument is added, `None` if none is.
        is_batched: whether it is a product by batches.
    """

    reader: Reader
    place: int
    channels: int
    weight: int
    summed: int
    bias: int | None
    is_batched: bool

    def channels_of(self, marked: Tensor, *, of_weight: bool = False) -> Tensor:
        """Which channels are marked: those of the input anywhere, those of the weight everywhere; a mask."""
        axis = self.summed if of_weight else self.channels
        marked = marked.movedim(axis, 1 if self.is_batched else 0)
        marked = marked.flatten(2 if self.is_batched else 1)
        return (marked.all(-1) if of_weight else marked.any(-1)).flatten()

    def without(self, marked: Tensor, channels: Tensor) -> Tensor:
        """Marks of the weight, without those of whole channels."""
        moved = marked.movedim(self.summed, 1 if self.is_batched else 0)
        own = channels.view(moved.shape[: 2 if self.is_batched else 1])
        return (moved & ~own.view(*own.shape, *[1] * (moved.dim() - own.dim()))).movedim(
            1 if self.is_batched else 0, self.summed
        )


def contraction_of(operation: Any, arguments: Sequence[Any], tensors: Tensors) -> Contraction | None:
    """What an operation contracts, `None` if it is none of ours, or not one of an activation with a parameter."""
    read = _READERS.get(operation)
    return read and read(arguments, tensors)


def is_product(operation: Any) -> bool:
    """Whether an operation is one of those that `rearranged` knows."""
    return operation in _PLACES


def rearranged(operation: Any, arguments: Sequence[Any], weight: int, reader: Reader) -> Rearranged | None:
    """What an operation contracts with a weight at some place of its arguments; `None` if it mixes no channels.

    Args:
        operation: one that is a product.
        arguments: its arguments.
        weight: which of them is the weight.
        reader: the reader to be.
    """
    first, second, bias = _PLACES[operation]
    if operation == aten.convolution.default:
        *_, transposed, _, groups = arguments
        if groups != 1 or weight != second:
            return None
        return Rearranged(
            reader, first, 1, second, 0 if transposed else 1, 2 if arguments[2] is not None else None, False
        )
    is_right = weight == second
    is_batched = arguments[weight].dim() == 3 and arguments[weight].shape[0] > 1
    place = first if is_right else second
    return Rearranged(reader, place, -1 if is_right else -2, weight, -2 if is_right else -1, bias, is_batched)


def places_of(operation: Any) -> tuple[int, int]:
    """Which arguments of a product are multiplied."""
    return _PLACES[operation][:2]


def _product(arguments: Sequence[Any], tensors: Tensors, first: int = 0) -> Contraction | None:
    """A matrix product, in batches or not, of the arguments `first` and `first + 1`."""
    left, right = arguments[first : first + 2]
    ours = [tensors.name_of(side) is not None for side in (left, right)]
    if sum(ours) != 1:
        return None
    weight = right if ours[1] else left
    summed = tensors.axis(weight, -2 if ours[1] else -1)
    if summed is None:
        return None
    other = -1 if ours[1] else -2  # of the parameter and of the output alike
    batch = tensors.axis(weight, 0) if weight.dim() == 3 else None
    written = [(other, tensors.axis(weight, other)), (0, batch)]
    if first and tensors.name_of(arguments[0]):  # the bias
        written.append((-1, tensors.axis(arguments[0], -1)))
    place = first if ours[1] else first + 1
    return Contraction(place, -1 if ours[1] else -2, summed, _known(written), batch)


def _product_with_bias(arguments: Sequence[Any], tensors: Tensors) -> Contraction | None:
    return _product(arguments, tensors, first=1)


def _product_by_group(arguments: Sequence[Any], tensors: Tensors) -> Contraction | None:
    """Rows of the input in groups, each with its expert's matrix: (rows, inputs) and (experts, inputs, outputs)."""
    inputs, weight = arguments[:2]
    summed = tensors.axis(weight, -2)
    if inputs.dim() != 2 or weight.dim() != 3 or summed is None or tensors.name_of(inputs):
        return None
    return Contraction(0, -1, summed, _known([(-1, tensors.axis(weight, -1))]))


def _convolution(arguments: Sequence[Any], tensors: Tensors) -> Contraction | None:
    inputs, weight, bias, *_, transposed, _, groups = arguments
    summed, written = (0, 1) if transposed else (1, 0)
    axis = tensors.axis(weight, summed)
    if groups != 1 or axis is None or tensors.name_of(inputs):
        return None
    outputs = [(1, tensors.axis(weight, written))]
    if bias is not None:
        outputs.append((1, tensors.axis(bias, 0)))
    return Contraction(0, 1, axis, _known(outputs))


def _known(written: Sequence[tuple[int, Axis | None]]) -> tuple[tuple[int, Axis], ...]:
    return tuple((place, axis) for place, axis in written if axis is not None)


_READERS = {
    aten.mm.default: _product,
    aten.bmm.default: _product,
    aten.addmm.default: _product_with_bias,
    aten.baddbmm.default: _product_with_bias,
    aten.convolution.default: _convolution,
    aten._grouped_mm.default: _product_by_group,
}

# Where the two factors are, and what is added.
_PLACES = {
    aten.mm.default: (0, 1, None),
    aten.bmm.default: (0, 1, None),
    aten.addmm.default: (1, 2, 0),
    aten.baddbmm.default: (1, 2, 0),
    aten.convolution.default: (0, 1, 2),
}
