"""Answers of an encoder with a decoder: texts with references, and what a model writes for them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import tqdm

from ..config_values import check_integer
from ..inputs.decoder_inputs import decoder_start, greedily, most_new, writes
from ..inputs.encoding import padded_batches, tokenizer_of
from ..inputs.texts import flat, parts_of, problem_of
from ..reading.columns import source_and_target
from ..reading.samples import draw
from ..reading.sources import find_source, read_calibration
from ..running.copies import working_copy

_SPLITS = ("validation", "test")


@dataclass(frozen=True)
class Pairs:
    """Texts, and what is to be written for each.

    Args:
        texts: pairs of strings.
        source: name of the data set, or of the file or folder.
        split: the split; `"all"` for data without splits.
    """

    texts: Sequence[tuple[str, str]]
    source: str
    split: str

    def __len__(self) -> int:
        return len(self.texts)

    def described(self, task: str) -> dict[str, Any]:
        """The fields of an `Evaluation` that these samples tell."""
        return {"task": task, "dataset": self.source, "split": self.split, "samples": len(self)}


def read_pairs(
    task: str,
    columns: Sequence[str] | None = None,
    *,
    data: Any = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    max_samples: int | None = None,
) -> Pairs:
    """The pairs of a data set or its name (`data`), of rows in memory, or of a file or folder (`data_dir`).

    Args:
        task: the task's name, for messages.
        columns: the column that is read and the one with the references; `None` tells them by their names.
        data: as for `evaluate_model`, as are the others.

    Raises:
        ValueError: both or none are given, no such split, or a row without a text or without a reference.
        FileNotFoundError, ConnectionError: there is no such file, or the Hub does not answer.
    """
    if (data is None) == (data_dir is None):
        given = "both are given" if data is not None else "none is given"
        raise ValueError(f"{task} needs data_dir=, a file or folder, or data=, pairs of texts: {given}.")
    if max_samples is not None:
        check_integer("max_samples", max_samples, 1)
    source, split, rows = _rows(data, data_dir, split)
    if not len(rows):
        raise ValueError(f"{source} holds no pairs of texts for {task}.")
    drawn = draw(rows, max_samples or sys.maxsize, seed=0)
    texts = parts_of({row: flat(drawn[row]) for row in sorted(drawn)}, columns, source_and_target)
    for row, parts in texts.items():
        if len(parts) < 2:
            raise ValueError(
                f"{source} holds texts without references: give pairs, or name the column that is read and the one "
                "with the references in text_columns=."
            )
        for part, what in zip(parts, ("text to read", "reference"), strict=True):
            if (problem := problem_of([part])) is not None:
                raise ValueError(f"row {row} of {source} has no {what} ({problem}): give one, or leave the row out.")
    return Pairs(list(texts.values()), source, split)


def check_writer(model: nn.Module, processor: Any, task: str) -> None:
    """Raise if a model cannot write answers.

    Raises:
        ValueError: no encoder with a decoder that writes, or no tokenizer.
    """
    if not writes(model):
        raise ValueError(
            f"{task} needs an encoder with a decoder that writes text, and {type(model).__name__} is none: "
            "load the model with task='text2text-generation'."
        )
    if processor is None:
        raise ValueError(f"{task} is measured on text: pass the model's tokenizer as processor=.")
    decoder_start(model)


def written_answers(
    model: nn.Module, processor: Any, pairs: Pairs, *, batch_size: int, most: int, task: str
) -> tuple[list[str], str]:
    """What a model writes for each text, taking the likeliest token each time, without beams, until it ends its text.

    Args:
        model: an encoder with a decoder.
        processor: its tokenizer, or a processor that holds one.
        pairs: the texts.
        batch_size: texts at once.
        most: tokens to write at most; the model's own limit counts as well.
        task: the progress bar's name.

    Returns:
        The answers, and how they came about in words.
    """
    check_integer("batch_size", batch_size, 1)
    most, tokenizer = min(most, most_new(model)), working_copy(tokenizer_of(processor))
    sources = [text for text, _ in pairs.texts]
    written = [""] * len(sources)
    for places, batch in tqdm(
        padded_batches(sources, model, processor, batch_size=batch_size), desc=task, unit="batch"
    ):
        sequences, ends = greedily(model, batch, most)
        after = ends.cummax(1).values
        for place, ids, over in zip(places, sequences, after, strict=True):
            written[place] = tokenizer.decode(ids[~over], skip_special_tokens=True).strip()
    return written, f"greedy, at most {most} tokens"


def mean_over_samples(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean and its standard error; `None` for a single sample."""
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std() / len(found) ** 0.5) if len(found) > 1 else None


def exact(text: str, reference: str) -> float:
    """Whether a text is its reference, but for space around it: 1 or 0."""
    return float(text.strip() == reference.strip())


def _rows(data: Any, data_dir: Any, split: str | None) -> tuple[str, str, Any]:
    """What the data are called, their split, and their rows."""
    if data_dir is not None:
        path = Path(os.fspath(data_dir)).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"no file or folder {path}: give the one that holds the pairs.")
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
