"""Running text to measure language models on: from text files as they are, or from the rows of a data set."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inputs.packing import joined
from ..reading.columns import text_columns
from ..reading.paths import splits_of, text_files
from ..reading.plain_text import read_text
from ..reading.sources import find_source, read_calibration, source_of

_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class RunningText:
    """One long text.

    Args:
        text: the text.
        source: name of the data set, or of the file or folder.
        split: the split; `"all"` for data without splits.
        config: the data set's configuration; empty if it has none.
        most: how many blocks of it count, the first ones; `None` for all.
    """

    text: str
    source: str
    split: str
    config: str = ""
    most: int | None = None

    def __len__(self) -> int:
        return len(self.text)

    def described(self, task: str) -> dict[str, Any]:
        """The fields of an `Evaluation` that the text tells; how many samples it makes, the tokenizer decides."""
        config = {"config": self.config} if self.config else {}
        return {"task": task, "dataset": self.source, **config, "split": self.split}


def read_running_text(
    task: str,
    *,
    data: Any = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    max_samples: int | None = None,
) -> RunningText:
    """The text of a file, a folder or a data set.

    Args:
        task: the task's name, for messages.
        data: a `datasets.Dataset`, a dict of them by split, a list of strings, or a data set's name on the Hub; its
            texts are joined by an empty line.
        data_dir: a local file or folder, instead. Text files are taken as they are, one after the other; of others,
            the texts of all rows are joined by an empty line.
        split: which split; `None` takes validation, else test, else all that there is.
        max_samples: blocks that count at most, the first ones.

    Raises:
        ValueError: both or none of `data` and `data_dir`, no such split, no text column, or no text.
        FileNotFoundError: there is no such file or folder.
        ConnectionError: the Hub does not answer.
    """
    if (data is None) == (data_dir is None):
        given = "both are given" if data is not None else "none is given"
        raise ValueError(f"{task} needs data_dir=, a text file or folder, or data=, texts or a data set: {given}.")
    if max_samples is not None and (not isinstance(max_samples, int) or max_samples < 1):
        raise ValueError(f"max_samples={max_samples!r} must be a whole number of at least 1, or None for all.")
    if data_dir is not None:
        found = _of_path(Path(data_dir).expanduser(), split)
    elif isinstance(data, str):
        place, config = find_source(data)
        if isinstance(place, Path):
            raise ValueError(f"data={data!r} is a path: give it as data_dir=.")
        split = split or _SPLITS[0]
        found = place, split, config or "", joined_rows(read_calibration(data, split=split), place)
    else:
        found = _of_given(data, split)
    source, split, config, text = found
    if not text.strip():
        raise ValueError(f"{data_dir or source} holds no text for {task}.")
    return RunningText(text, source, split, config, max_samples)


def joined_rows(rows: Any, source: str) -> str:
    """The texts of a data set's rows, or of a list of strings, with an empty line between two.

    Raises:
        ValueError: no column holds text, or several do.
    """
    if isinstance(rows, Sequence) and all(isinstance(row, str) for row in rows):
        return joined(rows)
    if not hasattr(rows, "column_names"):
        raise ValueError(f"{source} must be a datasets.Dataset or a list of strings, got {type(rows).__name__}.")
    columns = list(rows.column_names)
    values = {name: list(rows[name]) for name in columns}
    strings = [name for name in columns if any(isinstance(value, str) for value in values[name])]
    names = text_columns(columns, strings, values)
    if len(names) > 1:
        raise ValueError(f"{source} holds pairs of texts ({' and '.join(names)}), which are no running text.")
    return joined(value for value in values[names[0]] if isinstance(value, str))


def _of_path(path: Path, split: str | None) -> tuple[str, str, str, str]:
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path}: give the one that holds the text.")
    known = [] if path.is_file() else splits_of(path)
    taken = split or next((name for name in _SPLITS if name in known), known[0] if known else None)
    source = path.resolve().name
    named = "all" if path.is_file() else taken or "all"
    files = text_files(path, taken or "train")
    if files:
        return source, named, "", "".join(map(read_text, files))
    return source, named, "", joined_rows(read_calibration(path, split=taken or "train"), source)


def _of_given(data: Any, split: str | None) -> tuple[str, str, str, str]:
    if isinstance(data, Mapping):
        taken = split or next((name for name in _SPLITS if name in data), None)
        if taken not in data:
            raise ValueError(f"data= has no split {split!r}; it has {', '.join(map(str, data))}: name one as split=.")
        data, split = data[taken], taken
    note = source_of(data)
    source = note.get("dataset") or getattr(getattr(data, "info", None), "dataset_name", None) or "texts in memory"
    found = split or note.get("split") or (str(data.split) if getattr(data, "split", None) else None)
    return source, found or "all", note.get("config") or "", joined_rows(data, source)
