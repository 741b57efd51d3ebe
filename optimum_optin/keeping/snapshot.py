"""A snapshot of a model: what its modules, tensors and configs are, and how all that is put back."""

from __future__ import annotations

from collections.abc import Iterable
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

_TENSORS = ("_parameters", "_buffers", "_modules")


class Snapshot:
    """What a model is at a moment: every attribute of its modules, hooks, modes and `forward`s among them.

    Args:
        model: the model.
        values: whether to keep copies of its buffers, too, which some forward passes write to.
        deep: whether to look into what attributes hold: hooks, tensors, modules, and the attributes of configs.
    """

    def __init__(self, model: nn.Module, *, values: bool = False, deep: bool = True) -> None:
        modules = list(model.modules())
        self._deep = deep
        self._modules = [(module, type(module), dict(vars(module))) for module in modules]
        containers = {
            id(value): (name, value)
            for _, _, attributes in (self._modules if deep else ())
            for name, value in attributes.items()
            if isinstance(value, (dict, list, set))
        }
        self._containers = [(name, value, _shallow(value) if value else ()) for name, value in containers.values()]
        parameters = {id(each): each for module in modules for each in module._parameters.values() if each is not None}
        self._gradients = [(parameter, parameter.requires_grad) for parameter in parameters.values()]
        self._configs = [(config, dict(vars(config))) for config in (configs_of(modules) if deep else ())]
        buffers = model.buffers() if values else ()
        self._buffers = [(buffer, buffer.detach().clone()) for buffer in buffers if not buffer.is_meta]
        self._is_back = False

    def restore(self, *, whole: bool) -> None:
        """Put everything back, in place; when that was done, it is not done again.

        Args:
            whole: whether modules and tensors come back to their places, too, and values to buffers.
        """
        if self._is_back:
            return
        for module, kind, attributes in self._modules:
            if type(module) is not kind:
                module.__class__ = kind
            if self._deep:
                _put_back(vars(module), attributes)
            else:  # a mark that hooks are there stays if they stay
                vars(module).update(attributes)
        for name, container, before in self._containers:
            if whole or name not in _TENSORS:
                _put_back(container, before)
        for parameter, required in self._gradients:
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
        for config, attributes in self._configs:
            _put_back(vars(config), attributes)
        if whole:
            fill(self._buffers)
        self._is_back = True


def fill(buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Write earlier values into tensors that hold others by now, in place."""
    with torch.no_grad():
        for buffer, values in buffers:
            if not _same(buffer, values):
                buffer.copy_(values)


def configs_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The configs that modules read, each once, with the configs inside them, and those of generation."""
    found: dict[int, Any] = {}
    names = ("config", "generation_config")
    waiting = [vars(module).get(name) for module in modules for name in names]
    while waiting:
        config = waiting.pop()
        if hasattr(config, "to_dict") and hasattr(config, "__dict__") and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return list(found.values())


def _shallow(value: dict | list | set) -> dict | list | set:
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else set(value)


def _put_back(container: dict | list | set, before: dict | list | set | tuple) -> None:
    """Let a container hold what it held, in its order; the container itself stays, as others may know it."""
    if _holds(container, before):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(before)
    else:
        container.update(before)  # `before` may be an empty tuple: most containers are empty


def _holds(container: dict | list | set, before: dict | list | set | tuple) -> bool:
    """Whether a container holds the very things that it held, in that order."""
    if len(container) != len(before) or not before:
        return len(container) == len(before)
    if isinstance(container, dict):
        return [*container] == [*before] and all(map(is_, container.values(), before.values()))
    return all(map(is_, container, before)) if isinstance(container, list) else container == before


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape hold the same, to the last bit."""
    return torch.equal(one.nan_to_num(), other.nan_to_num()) and torch.equal(one.isnan(), other.isnan())
