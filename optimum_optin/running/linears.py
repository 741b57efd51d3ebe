"""Linears and convolutions as one thing: rows of features times a weight of shape (outputs, features).

A linear reads a row for each token. A convolution reads one for each place of what it writes: the patch of its input
around that place, channel after channel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers.pytorch_utils import Conv1D

_PLACES = 64  # of each sample, at most
WIDEST = 8192
"""Features of a row whose products are all summed, at most, where there is another way; see `places_of`."""
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_PLAIN = {each.forward for each in CONVOLUTIONS}
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def is_convolution(module: nn.Module) -> bool:
    """Whether a module is a convolution each of whose outputs reads all of its channels."""
    return isinstance(module, CONVOLUTIONS) and module.groups == 1


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear."""
    return isinstance(module, (nn.Linear, Conv1D))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear, whichever way round it is kept (GPT-2's are transposed), or of a convolution.

    Returns:
        Shape (outputs, features); it need not share memory with the weight.
    """
    weight = module.weight.detach()
    if isinstance(module, Conv1D):
        return weight.T
    return weight.flatten(1) if isinstance(module, CONVOLUTIONS) else weight


def add_to_weight(module: nn.Module, change: Tensor) -> None:
    """Add a change of shape (outputs, features) to the weight of a linear or a convolution, in place."""
    weight = module.weight.detach()
    weight += (change.T if isinstance(module, Conv1D) else change.reshape(weight.shape)).to(weight)


def places_of(module: nn.Module, width: int = 1) -> int:
    """How many features of a row are places of one channel, where there are too many features to sum their products.

    The products of 25,088 features, the 7 x 7 places of VGG's 512 channels, would take 2.5 GB, and several times as
    much to solve for. There, channels are scored by what each does alone, and refitted by the mean of their places.

    Args:
        module: a linear or a convolution that reads channels.
        width: how many input columns of a linear are places of one channel.

    Returns:
        At least 1, and 1 if there are no more than `WIDEST` features.
    """
    if weight_of(module).shape[1] <= WIDEST:
        return 1
    return module.weight[0, 0].numel() if isinstance(module, CONVOLUTIONS) else width


def features_of(module: nn.Module, inputs: slice) -> slice:
    """Which features of its rows come from some of a linear's input columns, or of a convolution's channels."""
    patch = module.weight[0, 0].numel() if isinstance(module, CONVOLUTIONS) else 1
    return slice(inputs.start * patch, inputs.stop * patch)


def rows_read(module: nn.Module, values: Tensor, places: Tensor | None = None) -> Tensor:
    """What a linear or a convolution reads, as rows of features.

    Args:
        module: it.
        values: its input, shape (batch, ..., features) or, for a convolution, (batch, channels, ...).
        places: which places of a convolution's output, flattened, to take the rows of; `None` for all.

    Returns:
        A linear's input as it is; a convolution's as shape (batch, places, features).
    """
    if not isinstance(module, CONVOLUTIONS):
        return values[..., : weight_of(module).shape[1]]  # one without inputs reads what stands in for them
    padding = _padding(module, values)
    if any(padding):
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        values = pad(values, padding, mode=mode)
    for dim, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        values = values.unfold(dim, dilation * (size - 1) + 1, stride)[..., ::dilation]
    dims = len(module.kernel_size)  # values: (batch, channels, *places, *kernel), a view
    if places is None:
        values = values.flatten(2, 1 + dims)
    else:
        values = values[
            (slice(None), slice(None), *torch.unravel_index(places.to(values.device), values.shape[2 : 2 + dims]))
        ]
    return values.transpose(1, 2).flatten(2)


def drawn_places(module: nn.Module, output: Tensor, generator: torch.Generator) -> Tensor | None:
    """Some places of a convolution's output, of which patches are taken; neighbours tell almost the same.

    Args:
        module: a linear or a convolution.
        output: what it writes.
        generator: source of the draw; nothing is drawn for a linear.

    Returns:
        Indices of the flattened places, shape (places,), on the CPU; `None` for all.
    """
    if not isinstance(module, CONVOLUTIONS):
        return None
    count = output[0, 0].numel()
    return torch.randperm(count, generator=generator)[:_PLACES] if count > _PLACES else None


def rows_written(module: nn.Module, values: Tensor, places: Tensor | None = None) -> Tensor:
    """What a linear or a convolution writes, or something of that shape, with the channels last.

    Args:
        module: it.
        values: shape (batch, ..., outputs) or, for a convolution, (batch, outputs, ...).
        places: see `rows_read`.

    Returns:
        A linear's output as it is; a convolution's as shape (batch, places, outputs).
    """
    if not isinstance(module, CONVOLUTIONS):
        return values
    rows = values.flatten(2)
    return (rows if places is None else rows[..., places.to(rows.device)]).transpose(1, 2)


def _padding(module: nn.Module, values: Tensor) -> list[int]:
    """How many places a convolution adds at both ends of each dimension of its input, the last one first.

    A class of its own may add more than its attributes say, so that there are places enough for what it returns: as
    many at either end, and an odd one behind, as TensorFlow does.
    """
    padding = list(module._reversed_padding_repeated_twice)
    if type(module).forward in _PLAIN:
        return padding
    written = type(module).forward(module, values[:1])  # without hooks
    for dim, (size, stride, dilation) in enumerate(
        zip(module.kernel_size, module.stride, module.dilation, strict=True), start=2
    ):
        before = len(padding) - 2 * (dim - 1)
        there = values.shape[dim] + padding[before] + padding[before + 1]
        more = max(0, (written.shape[dim] - 1) * stride + dilation * (size - 1) + 1 - there)
        padding[before] += more // 2
        padding[before + 1] += more - more // 2
    return padding
