"""Summaries: what an encoder with a decoder writes, by ROUGE, and the share that is right to the last character."""

from __future__ import annotations

from collections.abc import Sequence

from .answers import AnswerTask, MetricValue, exact, mean_over_samples
from .rouge import NAMES, rouge


class Summarization(AnswerTask):
    """What an encoder with a decoder writes for texts, compared with references.

    Metrics are `rouge1`, `rouge2` and `rougeL` (F1), and `exact_match`, each the mean over samples.

    The model takes the likeliest token each time, without beams, until it ends its text.

    Args:
        text_columns: the column that is read and the one with the references; `None` tells them by their names, as
            `OptinPruner.prune` does.
        max_new_tokens: tokens to write at most.
    """

    name = "summarization"

    def compare(self, written: Sequence[str], references: Sequence[str]) -> tuple[dict[str, MetricValue], str]:
        """The mean of each metric, with its standard error."""
        found: dict[str, list[float]] = {name: [] for name in (*NAMES, "exact_match")}
        for text, reference in zip(written, references, strict=True):
            for name, value in (*rouge(text, reference).items(), ("exact_match", exact(text, reference))):
                found[name].append(value)
        return {name: mean_over_samples(values) for name, values in found.items()}, ""
