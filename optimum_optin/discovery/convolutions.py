"""Convolutions in a pass: which layers return feature maps, and which batch norms read what a convolution writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from ..architectures.group import Group
from ..running.batch import Batch
from ..running.forward import call_model, first_of
from ..running.linears import BATCH_NORMS, CONVOLUTIONS

_CHANNELS_FIRST = (*CONVOLUTIONS, *BATCH_NORMS, nn.GroupNorm)


@torch.no_grad()
def maps_of(model: nn.Module, layers: Mapping[str, str], sample: Batch) -> frozenset[str]:
    """Names of the layers that return feature maps, shape (batch, channels, ...).

    A layer is one of these if a convolution, a batch norm or a group norm in it returns something of the same shape.

    Args:
        model: the model, frozen.
        layers: its layers, name -> module path.
        sample: its inputs.
    """
    inner: dict[str, set[torch.Size]] = {path: set() for path in layers.values()}
    found: set[str] = set()

    def noting(path: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            inner[path].add(output.shape)

        return hook

    def telling(name: str, path: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            hidden = first_of(output)
            if isinstance(hidden, Tensor) and hidden.dim() > 2 and hidden.shape in inner[path]:
                found.add(name)

        return hook

    with ExitStack() as stack:
        for name, path in layers.items():
            layer = model.get_submodule(path)
            for module in layer.modules():
                if isinstance(module, _CHANNELS_FIRST):
                    stack.callback(module.register_forward_hook(noting(path)).remove)
            stack.callback(layer.register_forward_hook(telling(name, path)).remove)
        call_model(model, sample)
    return frozenset(found)


@torch.no_grad()
def with_norms(model: nn.Module, groups: Iterable[Group], sample: Batch) -> list[Group]:
    """Groups that know the batch norms which read what their convolutions write, as it is.

    Args:
        model: the model, frozen.
        groups: its groups.
        sample: its inputs.
    """
    groups = list(groups)
    written: dict[int, tuple[str, ref[Tensor]]] = {}
    norms: dict[str, str] = {}

    def writing(path: str):
        def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
            written[id(output)] = path, ref(output)

        return hook

    def reading(path: str):
        def hook(module: nn.Module, args: tuple) -> None:
            writer, tensor = written.get(id(args[0]), (None, lambda: None))
            if tensor() is args[0]:
                norms[writer] = path

        return hook

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, CONVOLUTIONS):
                stack.callback(module.register_forward_hook(writing(path)).remove)
            elif isinstance(module, BATCH_NORMS) and module.running_mean is not None:
                stack.callback(module.register_forward_pre_hook(reading(path)).remove)
        call_model(model, sample)
    return [_with(group, norms) for group in groups]


def _with(group: Group, norms: Mapping[str, str]) -> Group:
    producers = tuple(replace(each, norm=norms.get(each.path)) for each in group.producers)
    consumers = tuple(replace(each, norm=norms.get(each.path)) for each in group.consumers)
    return replace(group, cut=replace(group.cut, producers=producers, consumers=consumers))
