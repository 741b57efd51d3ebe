"""Facts of a model that are measured by running it: once for each model object and the shapes of its weights."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TypeVar
from weakref import WeakKeyDictionary

from torch import nn

Fact = TypeVar("Fact")

_FACTS: WeakKeyDictionary[nn.Module, dict[Hashable, object]] = WeakKeyDictionary()


def measured_once(model: nn.Module, name: Hashable, measure: Callable[[], Fact]) -> Fact:
    """What `measure` returned the first time for this model and name.

    Args:
        model: the model; its facts are forgotten with it, and a copy of it is another model.
        name: all that the fact depends on besides the shapes of the model's weights, which may change in place; it must
            not depend on what they hold.
        measure: runs the model.
    """
    facts = _FACTS.setdefault(model, {})
    key = name, tuple(parameter.shape for parameter in model.parameters())
    if key not in facts:
        facts[key] = measure()
    return facts[key]
