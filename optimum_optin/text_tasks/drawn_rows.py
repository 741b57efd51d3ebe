"""Rows to measure on, of a data set, in memory, or of files: all of them, or a draw that is always the same."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config_values import check_integer
from ..reading.samples import draw
from ..reading.sources import find_source, read_calibration

_SPLITS = ("validation", "test")


def drawn_rows(
    task: str,
    what: str,
    *,
    data: Any = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    max_samples: int | None = None,
) -> tuple[str, str, dict[int, Any]]:
    """What the data are called, their split, and rows by their number, in order.

    Args:
        task: the task's name, for messages.
        what: what the rows are, for messages.
        data: as for `evaluate_model`, as are the others.

    Raises:
        ValueError: both or none of `data` and `data_dir` are given, no such split, or no rows.
        FileNotFoundError, ConnectionError: there is no such file, or the Hub does not answer.
    """
    if (data is None) == (data_dir is None):
        given = "both are given" if data is not None else "none is given"
        raise ValueError(f"{task} needs data_dir=, a file or folder, or data=, {what}: {given}.")
    if max_samples is not None:
        check_integer("max_samples", max_samples, 1)
    source, split, rows = _rows(what, data, data_dir, split)
    if not len(rows):
        raise ValueError(f"{source} holds no {what} for {task}.")
    drawn = draw(rows, max_samples or sys.maxsize, seed=0)
    return source, split, {row: drawn[row] for row in sorted(drawn)}


def _rows(what: str, data: Any, data_dir: Any, split: str | None) -> tuple[str, str, Any]:
    """What the data are called, their split, and their rows."""
    if data_dir is not None:
        path = Path(os.fspath(data_dir)).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: give the one that holds {what}.")
        taken = split or ("train" if path.is_file() else _SPLITS[0])
        return path.resolve().name, "all" if path.is_file() else taken, read_calibration(path, split=taken)
    if isinstance(data, str):
        place, config = find_source(data)
        if isinstance(place, Path):
            raise ValueError(f"data={data!r} is a path: give it as data_dir=.")
        split = split or _SPLITS[0]
        return place, split, read_calibration(data, config, split=split)
    if isinstance(data, Mapping) and any(hasattr(rows, "column_names") for rows in data.values()):
        taken = split or next((name for name in _SPLITS if name in data), None)
        if taken not in data:
            raise ValueError(f"data= has no split {split!r}; it has {', '.join(map(str, data))}: name one as split=.")
        return "rows in memory", taken, data[taken]
    return "rows in memory", split or "all", data if hasattr(data, "__len__") else list(data)
