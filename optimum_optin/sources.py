"""Calibration data by name: a data set on the Hub, a file, or a folder of files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .pixels import IMAGE_SUFFIXES

# Suffix -> loader of `datasets` and its options.
_LOADERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", {}),
    ".tsv": ("csv", {"delimiter": "\t"}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
    ".parquet": ("parquet", {}),
    ".txt": ("text", {}),
}


def read_calibration(
    source: str | os.PathLike,
    config_name: str | None = None,
    *,
    split: str = "train",
    text_columns: Sequence[str] | None = None,
):
    """Calibration samples from a file, a folder or the Hub.

    Args:
        source: a CSV, TSV, JSON, JSONL, Parquet or text file (a sample per line), an image, a folder of such files of
            one kind, or a Hub id, which may name its configuration (`"nyu-mll/glue:sst2"`). Images may have a
            `metadata.csv` or the like beside them, and be sorted into folders by class.
        config_name: configuration of the data set on the Hub.
        split: split of the data set; in a folder, files named like `test.csv` or `dev.csv`, or in folders of such
            names, are no part of train. A single file has no splits.
        text_columns: one or two columns that hold the text; `None` leaves the choice to `OptinPruner.prune`.

    Returns:
        A `datasets.Dataset`.

    Raises:
        FileNotFoundError: no such file, folder or data set.
        ValueError: files of a kind that is not read, or no such columns (lists those there are).
        ConnectionError: the Hub does not answer.
    """
    if Path(source).exists():
        dataset = _read_files(Path(source), split)
    elif _looks_local(str(source)):
        raise FileNotFoundError(f"no file or folder {source}.")
    else:
        dataset = _read_hub(str(source), config_name, split)
    return dataset if text_columns is None else _chosen(dataset, text_columns)


def _read_files(path: Path, split: str):
    from datasets import load_dataset  # slow to import

    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    suffixes = sorted({file.suffix.lower() for file in files})
    kinds = {file.suffix.lower() for file in files if file.stem != "metadata"} & set(_LOADERS)
    images = any(suffix in IMAGE_SUFFIXES for suffix in suffixes)
    if len(kinds) + images != 1:
        found = ", ".join(suffixes) or "nothing"
        raise ValueError(f"{path} must hold files of one kind of {', '.join(_LOADERS)}, or images; it has {found}.")
    if images:
        place = {"data_dir": str(path)} if path.is_dir() else {"data_files": str(path)}
        return load_dataset("imagefolder", split=split if path.is_dir() else "train", **place)
    # A single file is read whole whatever its name; in a folder, names like test.csv tell the splits.
    dataset = load_dataset(str(path), split=split) if path.is_dir() else _read_file(path)
    return dataset.filter(lambda row: row["text"].strip()) if kinds == {".txt"} else dataset


def _read_file(file: Path):
    from datasets import load_dataset

    loader, options = _LOADERS[file.suffix.lower()]
    return load_dataset(loader, data_files=str(file), split="train", **options)


def _read_hub(source: str, config_name: str | None, split: str):
    from datasets import load_dataset  # slow to import

    name, _, named = source.partition(":")
    try:
        return load_dataset(name, config_name or named or None, split=split)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot read {name} from the Hub: {error}. Without it, give a file or a folder."
        ) from error


def _looks_local(source: str) -> bool:
    return source.startswith(("/", ".", "~")) or Path(source).suffix.lower() in (*_LOADERS, *IMAGE_SUFFIXES)


def _chosen(dataset, columns: Sequence[str]):
    missing = [name for name in columns if name not in dataset.column_names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(dataset.column_names)}.")
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"text_columns must name one column or two, got {', '.join(columns)}.")
    names = dict(zip(columns, ("text", "text_pair"), strict=False))
    return dataset.select_columns(list(columns)).rename_columns(names)
