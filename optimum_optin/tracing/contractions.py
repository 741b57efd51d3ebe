"""Contractions with a parameter (linears, convolutions, matrix products) among the operations of a forward pass.

Whatever a module or a function is called, PyTorch runs it as one of a handful of operations: these are the table here.
A convolution in groups mixes no channels of different groups, so it is left to be an operation like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

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


def contraction_of(operation: Any, arguments: Sequence[Any], tensors: Tensors) -> Contraction | None:
    """What an operation contracts, `None` if it is none of ours, or not one of an activation with a parameter."""
    read = _READERS.get(operation)
    return read and read(arguments, tensors)


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
