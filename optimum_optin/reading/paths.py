"""A file or a folder on this machine: the kind of its files, and which files belong to a split."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..running.processes import is_main
from .kinds import SUFFIXES, kind_of
from .media_folders import MEDIA, METADATA, read_media
from .rows import read_rows

logger = logging.get_logger(__name__)

# Words in names of files and folders that tell a split, as `datasets` has them.
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "dev", "val"),
    "test": ("test", "testing", "eval", "evaluation"),
}


def read_path(path: Path, split: str, delimiter: str | None = None, only: Sequence[str] | None = None):
    """The rows of a file, or of a split of a folder of files of one kind.

    Args:
        path: a file or folder that exists.
        split: split of a folder, or what `read_parts` takes; a single file is read whole.
        delimiter: between the cells of a table; `None` finds it.
        only: kinds of files to read; others do not matter. `None` takes all.

    Returns:
        A `datasets.Dataset`.

    Raises:
        ValueError: files of several kinds, or of one that is not read; no such split; or a file that cannot be read.
    """
    return read_parts(lambda name: _read_split(path, name, delimiter, only), split)


def read_parts(read: Callable[[str], Any], split: str):
    """What `split` names: a split, a part of one, or several of them, as in `datasets`.

    Args:
        read: name of a split -> its rows.
        split: such as `"train[:10%]+test"`.

    Raises:
        ValueError: `split` is none of these.
    """
    from datasets import ReadInstruction, concatenate_datasets  # slow to import

    parts = []
    for part in split.split("+"):
        name = part.partition("[")[0]
        rows = read(name)
        if name != part:
            try:
                (bounds,) = ReadInstruction.from_spec(part).to_absolute({name: len(rows)})
            except ValueError as error:
                raise ValueError(
                    f"split={split!r} must be a split, like 'train', a part of one, like 'train[:10%]' or "
                    "'train[100:200]', or several with '+' between them."
                ) from error
            rows = rows.select(range(bounds.from_, bounds.to))
        parts.append(rows)
    return concatenate_datasets(parts) if len(parts) > 1 else parts[0]


def splits_of(folder: Path) -> list[str]:
    """The splits that names of folders or files tell, or that `save_to_disk` of `datasets` wrote; empty if none are."""
    if (folder / "dataset_dict.json").is_file():
        return list(json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])
    return sorted(_by_split(folder, _files_in(folder)))


def text_files(path: Path, split: str) -> list[Path]:
    """The text files of a split of a folder that holds no files of another kind, or the one that a path is; empty if
    there are none.

    Raises:
        ValueError: the folder has text files, but none of this split.
    """
    files = [path] if path.is_file() else _files_in(path)
    kinds = {file: kind_of(file) for file in files if not _is_note(file)}
    found = [file for file, kind in kinds.items() if kind == "text"]
    if not found or set(kinds.values()) - {"text", None}:
        return []
    return found if path.is_file() else _of_split(path, found, split)


def _read_split(path: Path, split: str, delimiter: str | None, only: Sequence[str] | None):
    if path.is_dir() and any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        return _load_saved(path, split)
    files = [path] if path.is_file() else _files_in(path)
    kinds = {file: kind_of(file) for file in files}
    if only is not None:
        kinds = {file: kind for file, kind in kinds.items() if kind in only or file.stem == METADATA}
    if any(kind not in ("text", None) for kind in kinds.values()):
        kinds = {file: kind for file, kind in kinds.items() if kind != "text" or not _is_note(file)}
    files = list(kinds)
    media = [file for file, kind in kinds.items() if kind in MEDIA]
    metadata = [file for file in files if media and file.stem == METADATA and kinds[file] not in (*MEDIA, None)]
    found = {kind for file, kind in kinds.items() if kind is not None and file not in metadata}
    if len(found) != 1:
        suffixes = sorted({file.suffix.lower() or f"{file.name} without a suffix" for file in files})
        raise ValueError(
            f"{path} must hold files of one kind of {', '.join(SUFFIXES)}, or images, or sounds; it has "
            f"{', '.join(suffixes) or 'nothing'}."
        )
    (kind,) = found
    if delimiter is not None and kind not in ("csv", "tsv", "text"):
        raise ValueError(f"delimiter={delimiter!r} is for tables, and {path} holds {kind}.")
    of_kind = [file for file in files if kinds[file] == kind and file not in metadata]
    _say_unread(path, [file for file, kind in kinds.items() if kind is None])
    # A single file is read whole whatever its name; in a folder, names like test.csv tell the splits.
    wanted = of_kind if path.is_file() else _of_split(path, of_kind, split)
    if kind in MEDIA:
        beside = [file for file in metadata if any(each.is_relative_to(file.parent) for each in wanted)]
        return read_media(kind, wanted, beside, of_kind if path.is_dir() and _at_one_depth(of_kind) else ())
    return read_rows(wanted, kind, delimiter)


def _files_in(folder: Path) -> list[Path]:
    """All files below a folder, in order, but hidden ones. Links are followed, and no folder is read twice."""
    found: list[Path] = []
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(filter(_is_shown, folders))
        found += [Path(place, name) for name in filter(_is_shown, names)]
    return sorted(filter(Path.is_file, found))


def _is_shown(name: str) -> bool:
    return not name.startswith((".", "__"))


def _at_one_depth(files: Sequence[Path]) -> bool:
    return len({len(file.parts) for file in files}) == 1


def _of_split(folder: Path, files: Sequence[Path], split: str) -> list[Path]:
    """The files of a split, told by the names of folders or else of files; without such names, all are train."""
    splits = _by_split(folder, files) or {"train": list(files)}
    wanted = next((name for name, words in _SPLITS.items() if split in words), split)
    if wanted not in splits:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(sorted(splits))}.")
    return splits[wanted]


def _by_split(folder: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Split -> its files, those without one left out; empty if no name tells a split."""
    for part in ("folders", "name"):
        splits: dict[str, list[Path]] = {}
        for file in files:
            inner = file.relative_to(folder)
            if name := _split_in("/".join(inner.parts[:-1]) if part == "folders" else inner.name):
                splits.setdefault(name, []).append(file)
        if splits:
            return splits
    return {}


def _split_in(name: str) -> str | None:
    for split, words in _SPLITS.items():
        if re.search(rf"(?i)(?:^|[-._ 0-9/])(?:{'|'.join(words)})(?:[-._ 0-9/]|$)", name):
            return split
    return None


def _say_unread(path: Path, files: Sequence[Path]) -> None:
    names = [file.name for file in files if not _is_note(file)]
    if names and is_main():
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        logger.warning(f"in {path}, files of other kinds are not read: {', '.join(names[:5])}{more}.")


def _is_note(file: Path) -> bool:
    """Whether a file is about the others (a README, a licence)."""
    return bool(re.match(r"(?i)(?:readme|licen[sc]e|copying)\b", file.name))


def _load_saved(folder: Path, split: str):
    """What `save_to_disk` of `datasets` wrote."""
    from datasets import DatasetDict, load_from_disk  # slow to import

    dataset = load_from_disk(str(folder))
    if not isinstance(dataset, DatasetDict):
        return dataset
    if split not in dataset:
        raise ValueError(f"{folder} has no split {split!r}; it has {', '.join(dataset)}.")
    return dataset[split]
