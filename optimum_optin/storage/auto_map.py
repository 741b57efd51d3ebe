"""`auto_map` of a config: code that a folder brings for classes that are not part of transformers."""

from __future__ import annotations

from transformers import PreTrainedConfig

REMOTE_FILE = "modeling_optin.py"


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
