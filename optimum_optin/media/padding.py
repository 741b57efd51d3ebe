"""Padding of images: which tokens of a stack are made of it, by the batch's `pixel_mask`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..architectures.group import stack_of
from ..discovery.find import find_layers
from ..discovery.streams import first_numbers
from ..running.batch import Batch, token_mask
from ..running.facts import measured_once
from ..running.forward import call_model, run_model
from ..running.freezing import frozen
from .vision import tokens_of_stacks

_STRIDES = [2**power for power in range(8)]  # pixels of the image from one place of a feature map to the next


def real_image_tokens(model: nn.Module, batch: Batch, stack: str) -> Tensor:
    """Which tokens of a stack are real, shape (batch, tokens), boolean.

    All are, but for those that attention leaves out because they are made of padding (DETR and its kin): places of
    flattened feature maps, of one level or several, the finest first. A backbone does not know of padding, and its
    tokens are all real; so are queries.
    """
    tokens = tokens_of_stacks(model, batch)[stack]
    mask = batch.get("pixel_mask")
    if mask is None or bool(mask.all()) or stack not in _masked_stacks(model, batch):
        return token_mask(batch, tokens)
    levels = _levels(tokens, *mask.shape[1:])
    if levels is None:
        return token_mask(batch, tokens)
    return torch.cat([resized_mask(mask, size).flatten(1) for size in levels], dim=1)


def resized_mask(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Which places of a map are none of padding: shapes (batch, height, width) -> (batch, *size), boolean.

    As DETR does it; a sample of which nothing would be left has its first place.
    """
    found = torch.nn.functional.interpolate(mask[None].float(), size=size)[0].bool()
    found[:, 0, 0] |= ~found.flatten(1).any(1)
    return found


def _levels(tokens: int, height: int, width: int) -> list[tuple[int, int]] | None:
    """The sizes of the feature maps, each half as large as the one before, that have so many places together."""
    sizes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in _STRIDES]
    for first in range(len(sizes)):
        for last in range(first + 1, len(sizes) + 1):
            if sum(rows * columns for rows, columns in sizes[first:last]) == tokens:
                return sizes[first:last]
    return None


def _masked_stacks(model: nn.Module, batch: Batch) -> frozenset[str]:
    """The stacks whose tokens are places of the image that the model masks by `pixel_mask`."""
    return measured_once(model, "stacks of padded tokens", lambda: _find_masked(model, batch))


@torch.no_grad()
def _find_masked(model: nn.Module, batch: Batch) -> frozenset[str]:
    """Found by what the mask changes, by what a wider image changes (queries are as many), and by layers' tokens."""
    one = {name: value[:1] for name, value in batch.items()}
    pixels = one["pixel_values"]
    wide = {"pixel_values": torch.cat([pixels, pixels], dim=-1)}
    half = torch.ones_like(one["pixel_mask"])
    half[..., half.shape[-1] // 2 :] = 0
    with frozen(model):
        some, others = (run_model(model, {**one, "pixel_mask": mask}) for mask in (half, torch.ones_like(half)))
        if all(torch.equal(some[name], others[name]) for name in some if isinstance(some[name], Tensor)):
            return frozenset()  # MaskFormer takes a mask and does nothing with it
        try:
            before, after = tokens_of_stacks(model, one), tokens_of_stacks(model, wide)
        except (ValueError, RuntimeError):  # images of one size alone, and no feature maps of others
            return frozenset()
        lengths = _lengths(model, one)
    return frozenset(stack for stack in before if before[stack] != after[stack] and lengths[stack] == {before[stack]})


def _lengths(model: nn.Module, batch: Batch) -> dict[str, set[int]]:
    """Stack -> the numbers of tokens that its layers are called with; 0 for what is no row of tokens."""
    found: dict[str, set[int]] = {stack_of(name): set() for name in find_layers(model)}
    handles = []
    for name, path in find_layers(model).items():

        def note(module: nn.Module, args: tuple, kwargs: dict, stack: str = stack_of(name)) -> None:
            hidden = first_numbers((*args, *kwargs.values()))
            found[stack].add(hidden.shape[1] if hidden is not None and hidden.dim() == 3 else 0)

        handles.append(model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True, prepend=True))
    try:
        call_model(model, batch)
    finally:
        for handle in handles:
            handle.remove()
    return found
