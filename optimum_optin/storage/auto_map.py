"""`auto_map` of a config: code that a folder brings for classes that are not part of transformers."""

from __future__ import annotations

from transformers import PreTrainedConfig, PreTrainedModel

REMOTE_FILE = "modeling_optin.py"
# What classes in our remote code have: how to rebuild a skeleton in format 1, and since format 2.
_MARKS = ("optin_convert", "optin_rebuild")


def own_code(config: PreTrainedConfig, name: str | None = None) -> dict[str, str]:
    """The code that `auto_map` names, without our own remote code: Auto class -> file and class.

    Args:
        config: a model's config.
        name: name of a class, to have its code alone.
    """
    ours = f"{REMOTE_FILE.removesuffix('.py')}."
    auto_map = getattr(config, "auto_map", None) or {}
    others = {auto: str(code) for auto, code in auto_map.items() if ours not in str(code)}
    return {auto: code for auto, code in others.items() if name is None or code.endswith(f".{name}")}


def brings_code(kind: type) -> bool:
    """Whether a class, or one that it derives from, is that of a folder's `modeling_optin.py`."""
    return any(hasattr(kind, mark) for mark in _MARKS)


def ordinary_class(kind: type) -> type:
    """The class of transformers that a class in a folder's `modeling_optin.py` is; any other class itself."""
    if f"{kind.__module__.rpartition('.')[2]}.py" != REMOTE_FILE:
        return kind
    return next(each for each in kind.__mro__ if each.__module__.startswith("transformers."))


def forget_remote_code(model: PreTrainedModel) -> None:
    """Take our own remote code out of `auto_map`, in place: a model of an ordinary class is saved without it."""
    others = own_code(model.config)
    vars(model.config).pop("auto_map", None)
    if others:
        model.config.auto_map = others
