"""Facts of a model that are measured by running it: once for each model object, whoever asks."""

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
        model: the model, forgotten when it is gone; a copy of it is another model.
        name: all that the fact depends on besides the model's layout: not on its weights, nor on which units it has.
        measure: runs the model.
    """
    facts = _FACTS.setdefault(model, {})
    if name not in facts:
        facts[name] = measure()
    return facts[name]
