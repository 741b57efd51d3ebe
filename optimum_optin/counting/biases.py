"""Position biases that a stack shares: by which argument each layer is handed the bias of all heads."""

from __future__ import annotations

import inspect
import re
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..running.batch import Batch
from ..running.forward import call_model
from ..tracing.found import FoundGroup


@torch.no_grad()
def bias_arguments(model: nn.Module, layer: str, units: int, sample: Batch) -> list[str]:
    """Arguments that may carry the bias of all heads: the innermost module first.

    Its shape is (batch, heads, queries, keys), or, as alibi has, (batch * heads or heads, 1, keys).

    Args:
        model: the model, frozen.
        layer: path of the layer.
        units: how many heads it has.
        sample: its inputs.

    Returns:
        Path of a module, then the name of its argument.
    """
    found: list[str] = []

    def hook(path: str):
        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            names = list(inspect.signature(module.forward).parameters)
            for name, value in [*zip(names, args, strict=False), *kwargs.items()]:
                if isinstance(value, Tensor) and _is_by_head(value, units):
                    found.append(f"{path}.{name}")

        return record

    with ExitStack() as stack:
        for path, module in model.get_submodule(layer).named_modules(prefix=layer):
            stack.callback(module.register_forward_pre_hook(hook(path), with_kwargs=True).remove)
        call_model(model, sample)
    return list(dict.fromkeys(reversed(found)))


def _is_by_head(value: Tensor, units: int) -> bool:
    if value.dim() == 3:
        return value.is_floating_point() and value.shape[1] == 1 and value.shape[0] % units == 0
    return value.dim() == 4 and value.shape[1] == units


def together(groups: Iterable[FoundGroup]) -> list[FoundGroup]:
    """Groups that share tables as one, with the tables, and others that are alike: what one loses, all lose."""
    shared = defaultdict(list)
    for group in groups:
        tables = tuple(part.tensor for part in group.shared)
        shared[tables or (re.sub(r"\d+", "#", group.module), group.units)].append(group)
    found = []
    for members in shared.values():
        levels = zip(*(group.module.split(".") for group in members), strict=False)
        common = []
        for names in levels:
            if len(set(names)) > 1:
                break
            common.append(names[0])
        writes = [part for group in members for part in group.writes]
        reads = [part for group in members for part in group.reads]
        found.append(FoundGroup(".".join(common), (*writes, *members[0].shared), tuple(reads)))
    return found
