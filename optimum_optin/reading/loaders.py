"""Loaders of `datasets` by name, with `data_files=` or `data_dir=`: we read local files of our kinds ourselves."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .kinds import kind_of
from .paths import read_path
from .rows import read_rows

# Loader -> kinds of files that we read in its place.
LOADERS: dict[str, tuple[str, ...]] = {
    "csv": ("csv", "tsv"),
    "json": ("json",),
    "parquet": ("parquet",),
    "text": ("text",),
    "imagefolder": ("image",),
    "audiofolder": ("sound",),
    "arrow": (),
    "webdataset": (),
}


def local_reader(loader: str, options: Mapping[str, Any]) -> Callable[[str, str | None], Any] | None:
    """The function that reads a split of the files in the place of a loader.

    Args:
        loader: a key of `LOADERS`.
        options: of `datasets.load_dataset`, without those that are for us.

    Returns:
        A function (name of a split, delimiter or `None`) -> rows. Or `None`, and `datasets` must read: there are other
        options, or files of other kinds, or none on this machine.
    """
    if set(options) == {"data_dir"} and LOADERS[loader] and os.path.isdir(options["data_dir"]):
        return lambda name, delimiter: read_path(Path(options["data_dir"]), name, delimiter, LOADERS[loader])
    if set(options) != {"data_files"} or loader in ("imagefolder", "audiofolder"):
        return None
    given = options["data_files"]
    found = {name: _local_files(files) for name, files in _by_split(given).items()}
    kinds = {kind_of(file) for files in found.values() for file in files}
    if not all(found.values()) or len(kinds) != 1 or not kinds <= set(LOADERS[loader]):
        return None

    def read(name: str, delimiter: str | None):
        if not isinstance(given, Mapping):  # without names of splits, all of it is train
            name = "train"
        if name not in found:
            raise ValueError(f"data_files= has no split {name!r}; it has {', '.join(found)}.")
        return read_rows(found[name], *kinds, delimiter)

    return read


def escaped(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of `datasets.load_dataset`, with paths that exist escaped, so that they are not taken for patterns."""
    if options.get("data_files") is None:
        return dict(options)
    files = {
        name: [_escaped(file) for file in _listed(files)] for name, files in _by_split(options["data_files"]).items()
    }
    return {**options, "data_files": files if isinstance(options["data_files"], Mapping) else files["train"]}


def _by_split(given: Any) -> Mapping[str, Any]:
    return given if isinstance(given, Mapping) else {"train": given}


def _listed(files: Any) -> list:
    return [files] if isinstance(files, (str, os.PathLike)) else list(files)


def _local_files(given: Any) -> list[Path]:
    """The files that paths and patterns name; none if one of them names none on this machine."""
    found: list[Path] = []
    for each in _listed(given):
        matches = [each] if os.path.isfile(each) else sorted(filter(os.path.isfile, glob.glob(each, recursive=True)))
        if not matches:
            return []
        found += map(Path, matches)
    return found


def _escaped(file: str | os.PathLike) -> str:
    return glob.escape(os.path.abspath(file)) if os.path.isfile(file) else os.fspath(file)
