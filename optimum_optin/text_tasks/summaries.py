"""Summaries: what an encoder with a decoder writes, by ROUGE, and the share that is right to the last character."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..config_values import check_integer
from ..figures import Measurement
from .answers import Pairs, check_writer, exact, mean_over_samples, read_pairs, written_answers
from .rouge import NAMES, rouge


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
        """The texts and their references; see `read_pairs`."""
        given = {"data": data, "data_dir": data_dir, "split": split, "max_samples": max_samples}
        return read_pairs(self.name, self._columns, **given)

    def check(self, model: nn.Module, processor: Any, samples: Pairs) -> None:
        """Raise if the model cannot write answers; see `check_writer`."""
        check_writer(model, processor, self.name)

    def check_each(self, model: nn.Module, processor: Any, samples: Pairs) -> None:
        """All was checked when the pairs were read."""

    def measure(self, model: nn.Module, processor: Any, samples: Pairs, batch_size: int) -> Measurement:
        """The mean of each metric, with its standard error."""
        written, how = written_answers(
            model, processor, samples, batch_size=batch_size, most=self._most, task=self.name
        )
        found: dict[str, list[float]] = {name: [] for name in (*NAMES, "exact_match")}
        for text, (_, reference) in zip(written, samples.texts, strict=True):
            for name, value in (*rouge(text, reference).items(), ("exact_match", exact(text, reference))):
                found[name].append(value)
        metrics = {name: mean_over_samples(values) for name, values in found.items()}
        return Measurement(metrics, described={"protocol": how})

    def show(self, samples: Pairs, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}
