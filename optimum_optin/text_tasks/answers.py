"""Answers of an encoder with a decoder: texts with references, and what a model writes for them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import tqdm

from ..config_values import check_integer
from ..figures import Measurement
from ..inputs.decoder_inputs import decoder_start, greedily, most_new, writes
from ..inputs.encoding import padded_batches, tokenizer_of
from ..inputs.texts import flat, parts_of, problem_of
from ..models.copies import working_copy
from ..reading.columns import source_and_target
from .drawn_rows import drawn_rows

MetricValue = tuple[float, float | None]
"""A metric and its standard error; `None` where there is none."""


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
    given = {"data": data, "data_dir": data_dir, "split": split, "max_samples": max_samples}
    source, split, rows = drawn_rows(task, "pairs of texts", **given)
    texts = parts_of({row: flat(each) for row, each in rows.items()}, columns, source_and_target)
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


class AnswerTask:
    """A task for an encoder with a decoder: what it writes for texts is compared with references.

    The model takes the likeliest token each time, without beams, until it ends its text.

    Args:
        text_columns: the column that is read and the one with the references; `None` tells them by their names, as
            `OptinPruner.prune` does.
        max_new_tokens: tokens to write at most.
    """

    name: str

    def __init__(self, text_columns: Sequence[str] | None = None, max_new_tokens: int = 128):
        check_integer("max_new_tokens", max_new_tokens, 1)
        self._columns, self._most = text_columns, max_new_tokens

    def compare(self, written: Sequence[str], references: Sequence[str]) -> tuple[dict[str, MetricValue], str]:
        """The metrics of what was written, with their standard errors, and how they are counted in words."""
        raise NotImplementedError

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> Pairs:
        """The texts and their references; see `read_pairs`."""
        given = {"data": data, "data_dir": data_dir, "split": split, "max_samples": max_samples}
        return read_pairs(self.name, self._columns, **given)

    def check(self, model: nn.Module, processor: Any, samples: Pairs) -> None:
        """Raise if the model cannot write answers; see `check_writer`."""
        check_writer(model, processor, self.name)

    def check_each(self, model: nn.Module, processor: Any, samples: Pairs) -> None:
        """All was checked when the pairs were read."""

    def measure(self, model: nn.Module, processor: Any, samples: Pairs, batch_size: int) -> Measurement:
        """The metrics, with their standard errors."""
        written, how = written_answers(
            model, processor, samples, batch_size=batch_size, most=self._most, task=self.name
        )
        metrics, counted = self.compare(written, [reference for _, reference in samples.texts])
        return Measurement(metrics, described={"protocol": how + counted})

    def show(self, samples: Pairs, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}


def mean_over_samples(values: Sequence[float]) -> MetricValue:
    """The mean and its standard error; `None` for a single sample."""
    found = torch.tensor(values, dtype=torch.float64)
    return float(found.mean()), float(found.std() / len(found) ** 0.5) if len(found) > 1 else None


def exact(text: str, reference: str) -> float:
    """Whether a text is its reference, but for space around it: 1 or 0."""
    return float(text.strip() == reference.strip())
