"""Word and character error rates for `evaluate`, without the network. `evaluate.load` of this very file works, too."""

from __future__ import annotations

import datasets
import evaluate

from optimum_optin.audio_tasks.errors import characters, edits, error_rate, plain_text, words


class ErrorRates(evaluate.Metric):
    """Edits for each word, and for each character, that was said; `compute` takes `exact`, by default true.

    Example:
        >>> from optimum_optin.evaluation.error_rate_metric import ErrorRates
        >>> ErrorRates().compute(predictions=["three won"], references=["three one four four"])
        {'wer': 0.75, 'cer': 0.631578947368421}
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="Edits for each word, and for each character, that was said.",
            citation="",
            inputs_description="predictions: what was understood; references: what was said.",
            features=datasets.Features(
                {"predictions": datasets.Value("string"), "references": datasets.Value("string")}
            ),
        )

    def _compute(self, predictions, references, *, exact: bool = True) -> dict[str, float]:
        said, heard = (texts if exact else list(map(plain_text, texts)) for texts in (references, predictions))
        found = {}
        for name, parts in (("wer", words), ("cer", characters)):
            units = [tuple(map(parts, pair)) for pair in zip(said, heard, strict=True)]
            found[name], _ = error_rate([edits(*unit) for unit in units], [len(first) for first, _ in units])
        return found
