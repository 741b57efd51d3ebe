"""ROUGE, or BLEU and chrF, for `evaluate`, without the network. `evaluate.load` of this very file works, too."""

from __future__ import annotations

import datasets
import evaluate

from optimum_optin.text_tasks.bleu import bleu_and_chrf
from optimum_optin.text_tasks.rouge import NAMES, rouge

_KNOWN = ("rouge", "bleu")


class AnswerMetric(evaluate.Metric):
    """How near texts are to references: F1 of ROUGE-1, -2 and -L (without stemming), or BLEU and chrF as shares.

    Args:
        config_name: `"rouge"`, the mean over texts, or `"bleu"`, of all texts together by sacrebleu; `compute` then
            takes `tokenize`, its name for a way to split words.
        **kwargs: passed to `evaluate.Metric`.

    Raises:
        ValueError: another name.

    Example:
        >>> from optimum_optin.evaluation.answer_metric import AnswerMetric
        >>> AnswerMetric("rouge").compute(predictions=["the cat sat"], references=["the cat lay"])["rouge2"]
        0.5
    """

    def __init__(self, config_name: str, keep_in_memory: bool = True, **kwargs):
        if config_name not in _KNOWN:
            raise ValueError(f"config_name={config_name!r} must be {' or '.join(map(repr, _KNOWN))}.")
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How near texts are to references.",
            citation="",
            inputs_description="predictions: what was written; references: what was to be written.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, **options: str | None) -> dict[str, float]:
        if self.config_name == "bleu":
            metrics, _ = bleu_and_chrf(predictions, references, **options)
            return {name: value for name, (value, _) in metrics.items()}
        if options:
            raise ValueError(f"rouge does not take {', '.join(options)}.")
        found = [rouge(*pair) for pair in zip(predictions, references, strict=True)]
        return {name: sum(each[name] for each in found) / len(found) for name in NAMES}
