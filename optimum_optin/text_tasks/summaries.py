"""Answers of an encoder with a decoder, beside references: ROUGE, and the share that is right to the last character."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.logging import tqdm

from ..config_values import check_integer
from ..figures import Measurement
from ..inputs.decoder_inputs import decoder_start, greedily, most_new, writes
from ..inputs.encoding import padded_batches, tokenizer_of
from ..inputs.texts import read_texts
from ..models.copies import working_copy
from ..reading.columns import source_and_target
from ..reading.samples import draw
from ..reading.sources import find_source, read_calibration
from .rouge import NAMES, rouge

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


class Summarization:
    """What an encoder with a decoder writes for texts, compared with references.

    Metrics are `rouge1`, `rouge2` and `rougeL` (F1), and `exact_match`, each the mean over samples.

    The model takes the likeliest token each time, without beams, until it ends its text.

    Args:
        text_columns: the column that is read and the one with the references; `None` tells them by their names, as
            `OptinPruner.prune` does.
        max_new_tokens: tokens to write at most.
    """

    name = "summarization"

    def __init__(self, text_columns: Sequence[str] | None = None, max_new_tokens: int = 128):
        check_integer("max_new_tokens", max_new_tokens, 1)
        self._columns, self._most = text_columns, max_new_tokens

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> Pairs:
        """The pairs, of a data set or its name (`data`), of rows in memory, or of a file or folder (`data_dir`).

        Raises:
            ValueError: both or none are given, no such split, or no references.
            FileNotFoundError, ConnectionError: there is no such file, or the Hub does not answer.
        """
        if (data is None) == (data_dir is None):
            given = "both are given" if data is not None else "none is given"
            raise ValueError(f"{self.name} needs data_dir=, a file or folder, or data=, pairs of texts: {given}.")
        source, split, rows = _rows(data, data_dir, split)
        drawn = draw(rows, max_samples or len(rows), seed=0)
        texts = read_texts(drawn, self._columns, "stop", source_and_target)
        if any(len(text) < 2 for text in texts.values()):
            raise ValueError(
                f"{source} holds texts without references: give pairs, or name the column that is read and the one "
                "with the references in text_columns=."
            )
        return Pairs([texts[row] for row in sorted(texts)], source, split)

    def check(self, model: nn.Module, processor: Any, samples: Pairs) -> None:
        """Raise if the model cannot be measured on these samples.

        Raises:
            ValueError: no encoder with a decoder that writes, or no tokenizer.
        """
        if not writes(model):
            raise ValueError(
                f"{self.name} needs an encoder with a decoder that writes text, and {type(model).__name__} is none: "
                "load the model with task='text2text-generation'."
            )
        if processor is None:
            raise ValueError(f"{self.name} is measured on text: pass the model's tokenizer as processor=.")
        decoder_start(model)

    def check_each(self, model: nn.Module, processor: Any, samples: Pairs) -> None:
        """All was checked when the pairs were read."""

    def measure(self, model: nn.Module, processor: Any, samples: Pairs, batch_size: int) -> Measurement:
        """The mean of each metric, with its standard error."""
        check_integer("batch_size", batch_size, 1)
        most, tokenizer = min(self._most, most_new(model)), working_copy(tokenizer_of(processor))
        sources = [text for text, _ in samples.texts]
        written = [""] * len(sources)
        for places, batch in tqdm(
            padded_batches(sources, model, processor, batch_size=batch_size), desc=self.name, unit="batch"
        ):
            sequences, ends = greedily(model, batch, most)
            after = ends.cummax(1).values
            for place, ids, over in zip(places, sequences, after, strict=True):
                written[place] = tokenizer.decode(ids[~over], skip_special_tokens=True).strip()
        found: dict[str, list[float]] = {name: [] for name in (*NAMES, "exact_match")}
        for text, (_, reference) in zip(written, samples.texts, strict=True):
            for name, value in (*rouge(text, reference).items(), ("exact_match", float(text == reference.strip()))):
                found[name].append(value)
        metrics = {name: _mean(torch.tensor(values, dtype=torch.float64)) for name, values in found.items()}
        return Measurement(metrics, described={"protocol": f"greedy, at most {most} tokens"})

    def show(self, samples: Pairs, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}


def _mean(values: torch.Tensor) -> tuple[float, float | None]:
    """The mean and its standard error; `None` for a single sample."""
    return float(values.mean()), float(values.std() / len(values) ** 0.5) if len(values) > 1 else None


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
