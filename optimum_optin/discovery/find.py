"""A model's layers and groups: by its row in the table of architectures, else found by tracing."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from ..architectures.group import Group, Groups
from ..architectures.registry import known_architectures
from ..models.examples import example_of
from ..models.identity import config_of
from ..running.batch import Batch
from ..running.facts import measured_once
from .declared import declared_groups, declared_inputs, declared_layers
from .discover import discover


def find_groups(model: nn.Module, sample: Batch | None = None) -> Groups:
    """All groups of removable units, in order of execution, with the model's layers.

    A model whose type is registered is taken for what its row says. Any other is traced, once for each model object:
    some hundred passes of one tiny sample. A sublayer that was pruned away entirely has no units left and is not
    listed.

    Args:
        model: the model.
        sample: a batch of one small sample to trace with; `None` makes one up. It counts the first time, and only if
            the model type is not registered.

    Raises:
        ValueError: the model is not built as its row says; or it cannot be traced, or no sample can be made up for it.
    """
    return declared_groups(model) if is_declared(model) else _discovered(model, sample)


def find_layers(model: nn.Module) -> dict[str, str]:
    """The model's layers in order of execution: name (`"layers.0"`) -> module path."""
    return declared_layers(model) if is_declared(model) else dict(_discovered(model).layers)


def stack_inputs(model: nn.Module) -> dict[str, str]:
    """The model's stacks in order of execution: name -> the model input that the stack's tokens are made of."""
    return declared_inputs(model) if is_declared(model) else dict(_discovered(model).inputs)


def groups_of(model: nn.Module, members: Groups | Iterable[Group]) -> Groups:
    """Some of a model's groups, in whatever they are: those of a list get the model's layers back."""
    return members if isinstance(members, Groups) else replace(find_groups(model), members=tuple(members))


def is_declared(model: nn.Module) -> bool:
    """Whether a row in the table of architectures says what the model's groups are.

    Rows are of encoders: a model of the same type that is set up as a decoder is traced.
    """
    config = config_of(model)
    decodes = getattr(config, "is_decoder", False) is True
    return getattr(config, "model_type", None) in known_architectures() and not decodes


def _discovered(model: nn.Module, sample: Batch | None = None) -> Groups:
    example = example_of(model) or {}
    shapes = tuple((name, tuple(value.shape)) for name, value in example.items())
    return measured_once(model, ("groups", shapes), lambda: discover(model, sample))
