"""Litter of early versions, which wrote beside a folder, to `.NAME-...` and `.NAME-old-...`, and held no lock.

What holds a model of ours and was not written to for a day is removed, but never the only copy of a file.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from transformers.utils import logging

from .held import DAY, listed, remove, seconds_since_written
from .json_files import read_object
from .model_files import is_model_file

logger = logging.get_logger(__name__)

_ENDS = re.compile(r"(?P<old>old-)?[a-z0-9_]{8}")
_METHODS = ("optin", "optimum_optin")
_WRITTEN = re.compile(
    r"README\.md|(generation_|tokenizer_|preprocessor_|processor_)?config\.json|tokenizer\.json|vocab\.(txt|json)|"
    r"merges\.txt|special_tokens_map\.json|added_tokens\.json|optin_(report|scores)\.json|optin_scores\.safetensors"
)


def sweep_earlier(path: Path) -> None:
    """Remove what killed saves of early versions left beside a folder or in it, and name what may be wanted.

    Args:
        path: the folder, which somebody of this version holds.
    """
    prefix = f".{path.name}-"
    for place in (path.parent, path):
        for folder in listed(prefix, place):
            ends = _ENDS.fullmatch(folder.name[len(prefix) :])
            with suppress(OSError):
                if ends and seconds_since_written(folder) > DAY:
                    _sweep(folder, folder / path.name if ends["old"] else folder, path)


def _sweep(folder: Path, model: Path, path: Path) -> None:
    """Remove a folder with a model of ours in it, unless it holds a file that is nowhere else."""
    if not any(folder.iterdir()):
        folder.rmdir()
        return
    if not _is_ours(model):
        return
    only = [file.relative_to(folder) for file in _files(folder) if not file.is_relative_to(model)]
    only += [name for name in (file.relative_to(model) for file in _files(model)) if not _is_spare(name, model, path)]
    if only:
        logger.warning(
            f"{folder} was left by a killed save of an early version, and holds {only[0]}, which {path} does not: move "
            "away what you need of it, and delete it."
        )
        return
    remove(folder, "a killed save of an early version")


def _is_ours(model: Path) -> bool:
    """Whether a folder holds a model that was pruned by this package, whole or not, or scores."""
    if any((model / name).is_file() for name in ("optin_report.json", "modeling_optin.py", "optin_scores.safetensors")):
        return True
    with suppress(OSError, ValueError):
        entry = read_object(model / "config.json").get("quantization_config")
        return isinstance(entry, dict) and entry.get("quant_method") in _METHODS
    return False


def _is_spare(name: Path, model: Path, path: Path) -> bool:
    """Whether a file is of the model, where there is another now, or is in the folder as well."""
    ours = len(name.parts) == 1 and (is_model_file(name.name) or _WRITTEN.fullmatch(name.name))
    if ours and (path / "config.json").is_file() | (path / "optin_scores.json").is_file():
        return True
    with suppress(OSError):
        here, there = (model / name).lstat(), (path / name).lstat()
        return (here.st_size, int(here.st_mtime)) == (there.st_size, int(there.st_mtime))
    return False


def _files(folder: Path) -> list[Path]:
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names]
