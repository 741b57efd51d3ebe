"""Examples of inputs: what a plain module's forward is called with, noted for each module object that a person gave."""

from __future__ import annotations

from collections.abc import Mapping
from weakref import WeakKeyDictionary

from torch import Tensor, nn

_EXAMPLES: WeakKeyDictionary[nn.Module, dict[str, Tensor]] = WeakKeyDictionary()


def note_example(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Note a batch that a model takes, in the place of what its config would tell; nothing is written into the model.

    Args:
        model: the model; its example is forgotten with it, and a copy of it is another model.
        batch: its inputs by the names of its forward's arguments.
    """
    _EXAMPLES[model] = dict(batch)


def example_of(model: nn.Module) -> dict[str, Tensor] | None:
    """The batch that was noted for a model; `None` for one whose config tells what it reads."""
    return _EXAMPLES.get(model)


def forget_example(model: nn.Module) -> None:
    """Take back what was noted for a model."""
    _EXAMPLES.pop(model, None)
