"""The structure file of a pruned module: what was cut, in the form that the configs of transformers have it in."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..files.json_files import read_object
from ..storage.entry import FORMAT_VERSION, STRUCTURE_FILE, OptinStructureConfig, entry_of

WEIGHTS_FILE = "model.safetensors"
_HOW_TO_LOAD = (
    "This is a pruned PyTorch module: optimum_optin.load_pruned(factory, folder) (pip install optimum-optin), where "
    "factory is what makes the dense module."
)
_PARTS = ("structure", "format_version", "shapes", "counters", "selectors", "stand_ins", "removed", "without", "digest")
_KEYS = ("how_to_load", "class", "pruned")


class PrunedModule(NamedTuple):
    """What a structure file says.

    Args:
        kind: the name of the class of the module that was pruned.
        entry: what was cut, in the JSON form of `OptinStructureConfig`.
    """

    kind: str
    entry: dict[str, Any]


def pruned_entry(module: nn.Module) -> OptinStructureConfig:
    """What was cut of a pruned module.

    Raises:
        ValueError: the module was not pruned.
    """
    entry = entry_of(module)
    if entry is None:
        raise ValueError(f"this {type(module).__name__} was not pruned: torch.save(module.state_dict(), ...) keeps it.")
    return entry


def write_structure(module: nn.Module, folder: Path, digest: Mapping[str, str]) -> None:
    """Write the structure file of a pruned module.

    Args:
        module: the module.
        folder: where to.
        digest: that of its entry and its tensors, see `digests/`.

    Raises:
        ValueError: the module was not pruned.
    """
    pruned = {name: value for name, value in pruned_entry(module).to_dict().items() if name in _PARTS}
    pruned["digest"] = dict(digest)
    data = {"how_to_load": _HOW_TO_LOAD, "class": type(module).__name__, "pruned": pruned}
    (folder / STRUCTURE_FILE).write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_structure(file: Path) -> PrunedModule:
    """Read a structure file; what it takes is bounded by the size of the file.

    Raises:
        ValueError: it is damaged, or of a newer format; says what is wrong.
    """
    data = read_object(file)
    try:
        return PrunedModule(*_checked(data))
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error


def _checked(data: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if unknown := sorted(set(data) - set(_KEYS)):
        raise ValueError(f"it must hold {', '.join(_KEYS)} alone, got {', '.join(unknown):.200}")
    if not isinstance(data.get("class"), str) or not data["class"].isidentifier():
        raise ValueError('it must hold {"class": ..., "pruned": {...}}, the class by its name')
    pruned = data.get("pruned")
    if not isinstance(pruned, Mapping) or (unknown := sorted(set(pruned) - set(_PARTS))):
        found = ", ".join(unknown)[:200] if isinstance(pruned, Mapping) else repr(pruned)[:80]
        raise ValueError(f"'pruned' must hold {', '.join(_PARTS)} alone, got {found}")
    if "format_version" not in pruned:
        raise ValueError("'pruned' lacks format_version")
    version = pruned["format_version"]
    if type(version) is int and version < FORMAT_VERSION:
        raise ValueError(f"format {version} is none of modules, which have {FORMAT_VERSION}")
    OptinStructureConfig(**pruned)
    return data["class"], dict(pruned)
