"""How many tokens the stacks of a model get of a sample, counted in a pass that ends there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import stack_of
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.feature_maps import as_tokens
from ..running.forward import call_model
from ..running.freezing import frozen
from ..running.linears import CONVOLUTIONS
from .find import find_groups, find_layers
from .streams import first_numbers


def tokens_of_stacks(model: nn.Module, batch: Batch) -> Mapping[str, int]:
    """Stack -> how many tokens its first layer gets of each sample: places of a sequence or of a feature map."""
    shapes = tuple((name, tuple(value.shape[1:])) for name, value in batch.items())
    return measured_once(model, ("tokens of stacks", shapes), lambda: _count_tokens(model, batch))


@torch.no_grad()
def _count_tokens(model: nn.Module, batch: Batch) -> dict[str, int]:
    first: dict[str, str] = {}
    for name in find_layers(model):
        first.setdefault(stack_of(name), name)
    maps, counts = find_groups(model).maps, {}

    def counting(stack: str) -> Callable[[nn.Module, tuple, dict[str, Any]], None]:
        def count(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            hidden = first_numbers((*args, *kwargs.values()))
            if hidden is not None:
                is_map = hidden.dim() > 2 and (first[stack] in maps or _reads_maps(module, hidden))
                counts.setdefault(stack, as_tokens(hidden, is_map).shape[1])
            if counts.keys() == first.keys():
                raise _Counted

        return count

    with ExitStack() as hooks, frozen(model):
        for stack, name in first.items():
            module = model.get_submodule(find_layers(model)[name])
            handle = module.register_forward_pre_hook(counting(stack), with_kwargs=True, prepend=True)
            hooks.callback(handle.remove)
        with suppress(_Counted):
            call_model(model, {name: value[:1] for name, value in batch.items()})
    return {stack: counts.get(stack, 1) for stack in first}  # one that does not run has no tokens to compare


def _reads_maps(layer: nn.Module, hidden: Tensor) -> bool:
    """Whether a layer that returns no map, as a whole network does, begins with a convolution of this one."""
    convolution = next((each for each in layer.modules() if isinstance(each, CONVOLUTIONS)), None)
    return convolution is not None and convolution.in_channels == hidden.shape[1]


class _Counted(Exception):
    """Ends a forward pass early."""
