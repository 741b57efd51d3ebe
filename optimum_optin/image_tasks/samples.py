"""Images with annotations: rows of a folder, of a data set on the Hub or of a `datasets.Dataset`, and their names."""

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
_SPLITS = ("validation", "test", "train")  # the first that there is


@dataclass(frozen=True)
class AnnotatedImages:
    """Rows of images with their annotations, read one by one.

    Args:
        rows: dicts.
        image: the column of images.
        target: the column of annotations.
        source: what the data set is called in a report.
        split: which split they are.
        config: the data set's configuration.
    """

    rows: Sequence[Mapping[str, Any]]
    image: str
    target: str
    source: str
    split: str
    config: str | None = ""

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, place: int) -> str:
        """What messages call a sample: its file, or its row."""
        image = self.rows[place][self.image]
        if isinstance(image, Mapping):
            image = image.get("path")
        return str(image) if isinstance(image, (str, os.PathLike)) else f"row {place}"

    def targets(self) -> list[Any]:
        """All annotations, without reading the images where that can be helped."""
        if hasattr(self.rows, "with_format"):
            return list(self.rows.with_format(None)[self.target])
        return [row[self.target] for row in self.rows]

    def drawn(self, max_samples: int | None) -> AnnotatedImages:
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
    *,
    data: Any = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    read_folder: Callable[[Path, str | None], AnnotatedImages | None] = lambda folder, split: None,
) -> AnnotatedImages:
    """The samples of a task.

    Args:
        task: its name, for messages.
        targets: names of columns that may hold the annotations, the likeliest first.
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
        found = _of_folder(task, Path(data_dir), targets, split, read_folder)
    elif isinstance(data, str):
        split = split or _SPLITS[0]
        name, _, config = data.partition(":")
        found = _of_dataset(read_calibration(data, split=split), targets, name, split, config)
    else:
        found = _of_given(data, targets, split)
    if not len(found):
        raise ValueError(f"{data_dir or found.source} holds no images with annotations for {task}.")
    return found


def _of_folder(
    task: str,
    folder: Path,
    targets: Sequence[str],
    split: str | None,
    read_folder: Callable[[Path, str | None], AnnotatedImages | None],
) -> AnnotatedImages:
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}: give the one that holds the images of {task}.")
    if not any(folder.iterdir()):
        raise ValueError(f"{folder} is empty: it holds no images with annotations for {task}.")
    own = read_folder(folder, split)
    if own is not None:
        return own
    known = splits_of(folder)
    taken = split or next((name for name in _SPLITS if name in known), known[0] if known else None)
    rows = read_calibration(folder, split=taken or "train")
    return _of_dataset(rows, targets, folder.resolve().name, taken or "all", "")


def _of_given(data: Any, targets: Sequence[str], split: str | None) -> AnnotatedImages:
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
    return _of_dataset(data, targets, source, found or "all", note.get("config", ""))


def _of_dataset(rows: Any, targets: Sequence[str], source: str, split: str, config: str | None) -> AnnotatedImages:
    columns = list(rows.column_names)
    image = next((name for name in IMAGES if name in columns), None)
    target = next((name for name in targets if name in columns), None)
    if image is None or target is None:
        lacking = " or ".join(IMAGES if image is None else targets)
        raise ValueError(
            f"{source} has no column {lacking}; it has {', '.join(columns)}: rename the one that is meant."
        )
    return AnnotatedImages(undecoded(rows), image, target, source, split, config or "")


def check_there(value: Any, name: str, what: str) -> None:
    """Raise if a sample's annotation is missing.

    Raises:
        ValueError: names the sample.
    """
    if is_missing(value):
        raise ValueError(f"{name} has no {what}: add it, or leave the image out.")
