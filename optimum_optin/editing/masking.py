"""Masks on a live model: multiply each consumer's input, leave the weights alone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from ..architectures.group import Blocks, Group, Masks, stack_of
from ..keeping.doors import kept
from ..running.experts import is_packed
from ..running.linears import is_convolution
from ..running.multihead import running_plainly


@contextmanager
def masked(model: nn.Module, groups: Iterable[Group], masks: Masks) -> Iterator[None]:
    """Run the model as if masked units were gone; undone on exit.

    Args:
        model: the model, not changed.
        groups: its groups; those without a mask stay whole.
        masks: group key -> mask of shape (units,), or (batch, units) for one mask per sample. A mask
            may require gradients: its gradient is then the sensitivity of each unit. Where it is put on weights
            (`is_masked_by_weight`), it must be of shape (units,) or (1, units).
    """
    with kept(model), ExitStack() as stack:
        for group in groups:
            if group.key not in masks:
                continue
            if is_masked_by_weight(model, group):
                for part in group.cut.reads:
                    stack.enter_context(_without(model, part, masks[group.key].flatten()))
                continue
            for consumer in group.consumers:
                module = model.get_submodule(consumer.path)
                stack.enter_context(running_plainly([model.get_submodule(consumer.path.rpartition(".")[0])]))
                inputs, is_map = group.inputs_of(consumer), is_convolution(module)
                hook = _masking_hook(masks[group.key], consumer.width, inputs.start, is_map, group.residual.windowed)
                stack.callback(module.register_forward_pre_hook(hook).remove)
        yield


def is_masked_by_weight(model: nn.Module, group: Group) -> bool:
    """Whether the mask of a group is put on the weights that read its units: those of experts, or of no consumer."""
    return all(is_packed(model.get_submodule(consumer.path)) for consumer in group.consumers)


@contextmanager
def differentiable(model: nn.Module, groups: Iterable[Group]) -> Iterator[None]:
    """Record a graph from the first groups of every stack on, though no weight requires gradients; undone on exit.

    It begins with the first group of each role: what one of them reads may have been detached (RT-DETR's decoder).

    Args:
        model: the model, not changed.
        groups: its groups.
    """
    device = next(model.parameters()).device
    first: dict[tuple[str, str], Group] = {}
    for group in groups:
        first.setdefault((stack_of(group.layer), group.role), group)
    ones = {group.key: torch.ones(group.units, device=device, requires_grad=True) for group in first.values()}
    with torch.enable_grad(), masked(model, first.values(), ones):
        yield


def gradients(
    functional: Tensor,
    leaves: Sequence[Tensor],
    keys: Sequence[str],
    *,
    keep_graph: bool = False,
    beside: Sequence[Tensor] = (),
) -> tuple[Tensor, ...]:
    """Gradients of a scalar made of the model's outputs, one by each of `leaves`.

    Those by the last layers of a stack are 0 where the model does not use them (BEiT's segmentation reads the layers
    that `out_indices` names, and those after them run in vain).

    Args:
        functional: the scalar.
        leaves: tensors, in order of execution.
        keys: the group of each; one of several leaves of a group is enough.
        keep_graph: whether there will be more gradients of the same pass.
        beside: gradients of another scalar of the same pass. Where these are not 0, those of this one may well be (a
            head's channels move the output, and no layer).

    Raises:
        ValueError: the outputs have no gradient by one of them.
    """
    if functional.requires_grad:
        found = torch.autograd.grad(functional, leaves, retain_graph=keep_graph, allow_unused=True)
        known = [bool(other.any()) for other in beside] or [False] * len(found)
        read: dict[str, bool] = {}  # by one consumer of a group at least: another may run in vain
        for key, gradient, moves in zip(keys, found, known, strict=True):
            read[key] = read.get(key, False) or gradient is not None or moves
        stacks: dict[str, list[bool]] = {}
        for key, used in read.items():
            stacks.setdefault(stack_of(key), []).append(used)
        if all(used[0] and used == sorted(used, reverse=True) for used in stacks.values()):
            return tuple(
                torch.zeros_like(leaf) if gradient is None else gradient
                for leaf, gradient in zip(leaves, found, strict=True)
            )
    raise ValueError(
        "what the model's forward returns has no gradient by all of its layers, which these scores and the refit "
        "need: let forward do without torch.no_grad, detach() and numpy, and use every sample and layer. "
        "(scorer='exact' with compensation='none' takes it as it is.)"
    )


@contextmanager
def _without(model: nn.Module, part: Blocks, mask: Tensor) -> Iterator[None]:
    """Let a module read its units by a copy of its weight, multiplied by a mask of shape (units,); undone on exit."""
    path, _, name = part.tensor.rpartition(".")
    module = model.get_submodule(path)
    tensors = module._parameters if name in module._parameters else module._buffers
    weight = tensors[name]
    copied = weight.detach() * part.factors(weight, mask).to(weight)
    is_plain = name in module._parameters and not copied.requires_grad
    tensors[name] = nn.Parameter(copied, requires_grad=False) if is_plain else copied
    try:
        yield
    finally:
        tensors[name] = weight


def _is_turned(units: Tensor, samples: int) -> bool:
    """Whether the samples are the second dimension: (tokens, batch, features), as in Mask2Former's decoder.

    Windows of which each has as many tokens as the batch has samples would look the same.
    """
    return units.dim() == 3 and len(units) != samples == units.shape[1]


def _masking_hook(mask: Tensor, width: int, start: int, is_map: bool, windowed: bool):
    def hook(module: nn.Module, args: tuple) -> tuple:
        units = args[0]  # (batch, ..., inputs); with windows, (batch * windows, tokens, inputs)
        columns = mask.to(units).repeat_interleave(width, dim=-1)
        beside = units.shape[1 if is_map else -1] - start - columns.shape[-1]
        columns = pad(columns, (start, beside), value=1.0)
        if columns.dim() == 2 and not is_map and not windowed and _is_turned(units, len(columns)):
            return (units * columns, *args[1:])
        if columns.dim() == 2:
            columns = columns.repeat_interleave(len(units) // len(columns), dim=0)
        places = [1] * (units.dim() - 2)
        if is_map:  # (batch, inputs, ...)
            return (units * columns.view(-1, columns.shape[-1], *places), *args[1:])
        return (units * columns.view(-1, *places, columns.shape[-1]), *args[1:])

    return hook
