"""Which of a model's inputs the tokens of a stack are made of, found by changing one input after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import stack_of
from ..models.identity import main_input_of
from ..running.batch import Batch
from ..running.forward import call_model


@torch.no_grad()
def inputs_of(model: nn.Module, layers: Mapping[str, str], sample: Batch) -> dict[str, str]:
    """Stack -> the input that its tokens are made of, in order of the layers.

    Args:
        model: the model, frozen.
        layers: its layers, name -> module path.
        sample: its inputs, a batch of one sample.
    """
    first = {stack_of(name): path for name, path in reversed(layers.items())}
    stacks = dict.fromkeys(map(stack_of, layers))
    main = main_input_of(model)
    telling = [name for name, value in sample.items() if value.dim() > 1 and value.unique().numel() > 1]
    if len(telling) < 2:
        return dict.fromkeys(stacks, telling[0] if telling else main or next(iter(sample)))
    dense = _read(model, first, sample)
    found = {stack: [] for stack in stacks}
    for name in telling:
        changed: dict[str, Tensor] = {}
        with suppress(Exception):  # sizes of images, say, that fit no others: no tokens are made of them
            changed = _read(model, first, {**sample, name: _changed(sample[name])})
        for stack in stacks:
            before, after = dense.get(stack), changed.get(stack)
            if before is not None and after is not None and (before.shape != after.shape or (before != after).any()):
                found[stack].append(name)
    return {stack: _likeliest(names, sample, dense.get(stack)) or main for stack, names in found.items()}


def _likeliest(names: list[str], sample: Batch, hidden: Tensor | None) -> str | None:
    """Of several inputs that reach a stack, the last that has as many places as the stack has tokens."""
    as_long = [name for name in names if hidden is not None and sample[name].shape[1] in hidden.shape[:-1]]
    return next(reversed(as_long or names), None)


def _changed(value: Tensor) -> Tensor:
    return value.roll(1, -1) if not value.is_floating_point() else value + value.roll(1, -1)


def _read(model: nn.Module, first: Mapping[str, str], sample: Batch) -> dict[str, Tensor]:
    """Stack -> the first tensor that its first layer is called with."""
    with _calls(model, first) as read:
        call_model(model, sample)
    return read


@contextmanager
def _calls(model: nn.Module, first: Mapping[str, str]) -> Iterator[dict[str, Tensor]]:
    read: dict[str, Tensor] = {}

    def hook(stack: str):
        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            tensor = first_numbers((*args, *kwargs.values()))
            if tensor is not None:
                read.setdefault(stack, tensor)

        return record

    with ExitStack() as stack:
        for name, path in first.items():
            handle = model.get_submodule(path).register_forward_pre_hook(hook(name), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield read


def first_numbers(values: Iterable[Any]) -> Tensor | None:
    """The first tensor of floating-point numbers among what a module is called with, lists of levels included."""
    for each in values:
        found = first_numbers(each) if isinstance(each, (tuple, list)) else each
        if isinstance(found, Tensor) and found.is_floating_point():
            return found
    return None
