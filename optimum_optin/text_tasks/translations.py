"""Translations: what an encoder with a decoder writes, by BLEU and chrF, and the share that is right as it stands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from ..config_values import check_integer
from ..figures import Measurement
from .answers import Pairs, check_writer, exact, mean_over_samples, read_pairs, written_answers
from .bleu import bleu_and_chrf, check_installed


class Translation:
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
        check_integer("max_new_tokens", max_new_tokens, 1)
        self._columns, self._most, self._tokenize = text_columns, max_new_tokens, tokenize

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> Pairs:
        """The texts and their references; see `read_pairs`.

        Raises:
            ImportError: sacrebleu is missing.
            ValueError: `tokenize` is no name that it knows.
        """
        check_installed(self._tokenize)
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
        references = [reference for _, reference in samples.texts]
        metrics, signature = bleu_and_chrf(written, references, self._tokenize)
        right = mean_over_samples([exact(*each) for each in zip(written, references, strict=True)])
        return Measurement({**metrics, "exact_match": right}, described={"protocol": f"{how}; BLEU {signature}"})

    def show(self, samples: Pairs, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}
