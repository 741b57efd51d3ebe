"""Translations: what an encoder with a decoder writes, by BLEU and chrF, and the share that is right as it stands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .answers import AnswerTask, MetricValue, Pairs, exact, mean_over_samples
from .bleu import bleu_and_chrf, check_installed


class Translation(AnswerTask):
    """What an encoder with a decoder writes for texts, compared with references as translations are.

    Metrics are `bleu` and `chrf`, of all samples together, as sacrebleu counts them but as shares (0.3 is a BLEU of
    30), and `exact_match`, the share of answers that are their references.

    The model takes the likeliest token each time, without beams, until it ends its text.

    Args:
        text_columns: the column that is read and the one with the references, such as `translation.en` and
            `translation.de`; `None` tells them by their names, as `OptinPruner.prune` does.
        max_new_tokens: tokens to write at most.
        tokenize: how BLEU splits words, by sacrebleu's name for it (`zh`, `char`, `ja-mecab`, ...); `None` takes `13a`.
    """

    name = "translation"

    def __init__(
        self, text_columns: Sequence[str] | None = None, max_new_tokens: int = 128, tokenize: str | None = None
    ):
        super().__init__(text_columns, max_new_tokens)
        self._tokenize = tokenize

    def read(self, **given: Any) -> Pairs:
        """The texts and their references; see `read_pairs`.

        Raises:
            ImportError: sacrebleu is missing.
            ValueError: `tokenize` is no name that it knows.
        """
        check_installed(self._tokenize)
        return super().read(**given)

    def compare(self, written: Sequence[str], references: Sequence[str]) -> tuple[dict[str, MetricValue], str]:
        """The metrics, with their standard errors."""
        metrics, signature = bleu_and_chrf(written, references, self._tokenize)
        right = mean_over_samples([exact(*each) for each in zip(written, references, strict=True)])
        return {**metrics, "exact_match": right}, f"; BLEU {signature}"
