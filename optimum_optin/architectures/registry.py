"""The registry of architectures: model type -> its stacks.

A new architecture is a row: one `register_architecture` call, in `table.py` or in a user's own code. See
docs/source/concepts/extending.mdx.
"""

from __future__ import annotations

from .stacks import Stack

_ARCHITECTURES: dict[str, tuple[Stack, ...]] = {}


def register_architecture(model_type: str, *stacks: Stack) -> None:
    """Make a model type prunable.

    Args:
        model_type: `config.model_type` of the model, e.g. `"bert"`.
        stacks: its layer lists in order of execution.

    Raises:
        ValueError: no stack, two stacks of one name, a name with a dot, or two sublayers of one role in a layer.
    """
    names = [getattr(stack, "name", stack) for stack in stacks]
    fit = stacks and all(isinstance(stack, Stack) and "." not in stack.name for stack in stacks)
    if not fit or len(set(names)) != len(names):
        raise ValueError(
            f"architecture {model_type!r} needs one or more Stack objects of distinct names without dots, got {names}."
        )
    for stack in stacks:
        roles = [sublayer.role for sublayer in stack.sublayers]
        if len(set(roles)) != len(roles):  # masks and scores are told apart by layer and role
            raise ValueError(
                f"architecture {model_type!r}: a layer of {stack.name!r} must have one sublayer of each role, got "
                f"{', '.join(roles)}."
            )
    _ARCHITECTURES[model_type] = stacks


def known_architectures() -> list[str]:
    """The registered model types, sorted."""
    return sorted(_ARCHITECTURES)


def row_of(model_type: str | None) -> tuple[Stack, ...]:
    """The stacks that a model type was registered with.

    Raises:
        ValueError: the model type is not registered; shows how to register it.
    """
    if model_type not in _ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {model_type!r}; known: {', '.join(known_architectures())}. "
            "A few lines add one, here for a model built like BERT:\n"
            "    from optimum_optin import Stack, heads, neurons, register_architecture\n"
            f"    register_architecture({model_type!r}, Stack('encoder.layer', (\n"
            "        heads('attention.self', 'attention.self.attention_head_size',\n"
            "              ['attention.self.query', 'attention.self.key', 'attention.self.value'],\n"
            "              'attention.output.dense'),\n"
            "        neurons(['intermediate.dense'], 'output.dense'),\n"
            "    )))\n"
            "See docs/source/concepts/extending.mdx."
        )
    return _ARCHITECTURES[model_type]
