"""Images or sounds with annotations: rows of a folder, of a data set on the Hub or of a `datasets.Dataset`, and their
names."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from ..reading.paths import splits_of
from ..reading.samples import is_missing, undecoded
from ..reading.sources import read_calibration, source_of

IMAGES = ("image", "img")
SOUNDS = ("audio", "speech", "sound")
_SPLITS = ("validation", "test", "train")  # the first that there is


@dataclass(frozen=True)
class AnnotatedSamples:
    """Rows of images or sounds with their annotations, read one by one.

    Args:
        rows: dicts.
        column: the column of images or sounds.
        target: the column of annotations.
        source: what the data set is called in a report.
        split: which split they are.
        config: the data set's configuration.
    """

    rows: Sequence[Mapping[str, Any]]
    column: str
    target: str
    source: str
    split: str
    config: str | None = ""

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, place: int) -> str:
        """What messages call a sample: its file, or its row."""
        found = self.rows[place][self.column]
        if isinstance(found, Mapping):
            found = found.get("path")
        return str(found) if isinstance(found, (str, os.PathLike)) else f"row {place}"

    def targets(self) -> list[Any]:
        """All annotations, without reading the samples where that can be helped."""
        if hasattr(self.rows, "with_format"):
            return list(self.rows.with_format(None)[self.target])
        return [row[self.target] for row in self.rows]

    def drawn(self, max_samples: int | None) -> AnnotatedSamples:
        """At most so many rows, always the same ones.

        Raises:
            ValueError: `max_samples` is no whole number of at least 1.
        """
        if max_samples is None:
            return self
        if not isinstance(max_samples, int) or max_samples < 1:
            raise ValueError(f"max_samples={max_samples!r} must be a whole number of at least 1, or None for all.")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(0))[:max_samples].sort().values
        rows = self.rows
        chosen = rows.select(order.tolist()) if hasattr(rows, "select") else [rows[place] for place in order.tolist()]
        return replace(self, rows=chosen)

    def described(self, task: str) -> dict[str, Any]:
        """The samples in words, as a report keeps them."""
        config = {} if self.config == "" else {"config": self.config}
        return {"task": task, "dataset": self.source, **config, "split": self.split, "samples": len(self)}


def read_annotated(
    task: str,
    targets: Sequence[str],
    columns: Sequence[str] = IMAGES,
    *,
    data: Any = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    read_folder: Callable[[Path, str | None], AnnotatedSamples | None] = lambda folder, split: None,
) -> AnnotatedSamples:
    """The samples of a task.

    Args:
        task: its name, for messages.
        targets: names of columns that may hold the annotations, the likeliest first.
        columns: names of columns that may hold the images or sounds, likewise.
        data: a `datasets.Dataset`, a dict of them by split, or a data set's name on the Hub.
        data_dir: a local folder, instead.
        split: which split; `None` takes validation, else test, else all that there is.
        read_folder: reads a folder in the task's own form, `None` if it has another.

    Raises:
        ValueError: both or none of `data` and `data_dir`, no such split, no such columns, or no samples.
        FileNotFoundError: there is no such folder.
    """
    if (data is None) == (data_dir is None):
        given = "both are given" if data is not None else "none is given"
        raise ValueError(f"{task} needs data_dir=, a folder, or data=, a datasets.Dataset or its name: {given}.")
    if data_dir is not None:
        found = _of_folder(task, Path(data_dir), targets=targets, columns=columns, split=split, read_folder=read_folder)
    elif isinstance(data, str):
        split = split or _SPLITS[0]
        name, _, config = data.partition(":")
        rows = read_calibration(data, split=split)
        found = _of_dataset(rows, targets, columns, source=name, split=split, config=config)
    else:
        found = _of_given(data, targets, columns, split)
    if not len(found):
        raise ValueError(f"{data_dir or found.source} holds no samples with annotations for {task}.")
    return found


def _of_folder(
    task: str,
    folder: Path,
    *,
    targets: Sequence[str],
    columns: Sequence[str],
    split: str | None,
    read_folder: Callable[[Path, str | None], AnnotatedSamples | None],
) -> AnnotatedSamples:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the one that holds the samples of {task}.")
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty: it holds no samples with annotations for {task}.")
    own = read_folder(folder, split)
    if own is not None:
        return own
    known = splits_of(folder)
    taken = split or next((name for name in _SPLITS if name in known), known[0] if known else None)
    rows = read_calibration(folder, split=taken or "train")
    return _of_dataset(rows, targets, columns, source=folder.resolve().name, split=taken or "all", config="")


def _of_given(data: Any, targets: Sequence[str], columns: Sequence[str], split: str | None) -> AnnotatedSamples:
    if isinstance(data, Mapping):
        taken = split or next((name for name in _SPLITS if name in data), None)
        if taken not in data:
            raise ValueError(f"data= has no split {split!r}; it has {', '.join(map(str, data))}: name one as split=.")
        data, split = data[taken], taken
    if not hasattr(data, "column_names") or not hasattr(data, "__len__"):
        raise ValueError(f"data= must be a datasets.Dataset, or the name of one on the Hub, got {type(data).__name__}.")
    note = source_of(data)
    info = getattr(data, "info", None)
    source = note.get("dataset") or getattr(info, "dataset_name", None) or "a data set in memory"
    found = split or note.get("split") or (str(data.split) if getattr(data, "split", None) else None)
    return _of_dataset(data, targets, columns, source=source, split=found or "all", config=note.get("config", ""))


def _of_dataset(
    rows: Any, targets: Sequence[str], columns: Sequence[str], *, source: str, split: str, config: str | None
) -> AnnotatedSamples:
    there = list(rows.column_names)
    column = next((name for name in columns if name in there), None)
    target = next((name for name in targets if name in there), None)
    if column is None or target is None:
        lacking = " or ".join(columns if column is None else targets)
        raise ValueError(f"{source} has no column {lacking}; it has {', '.join(there)}: rename the one that is meant.")
    return AnnotatedSamples(undecoded(rows), column, target, source, split, config or "")


def check_there(value: Any, name: str, what: str) -> None:
    """Raise if a sample's annotation is missing.

    Raises:
        ValueError: names the sample.
    """
    if is_missing(value):
        raise ValueError(f"{name} has no {what}: add it, or leave the sample out.")
