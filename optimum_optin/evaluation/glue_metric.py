"""GLUE's metrics for `evaluate`, without the network that `evaluate.load("glue")` needs."""

from __future__ import annotations

import evaluate
import torch
from datasets import Features, Value

from .glue import find_task
from .metrics import metrics_of


class GlueMetric(evaluate.Metric):
    """The official metrics of a GLUE task, as `evaluate.load("glue", task)` would compute them.

    Args:
        config_name: the task, `"sst2"` or `"glue/sst2"`, and so on.
        **kwargs: passed to `evaluate.Metric`.

    Raises:
        ValueError: unknown task.

    Example:
        >>> from optimum_optin.evaluation.glue_metric import GlueMetric
        >>> GlueMetric("mrpc").compute(predictions=[0, 1, 1], references=[0, 1, 0])["accuracy"]
        0.6666666666666666
    """

    def __init__(self, config_name: str, keep_in_memory: bool = True, **kwargs):
        self._task = find_task(config_name)
        super().__init__(self._task.name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        value = Value("int64" if self._task.labels else "float64")
        return evaluate.MetricInfo(
            description=f"The metrics of glue/{self._task.name}: {', '.join(self._task.metrics)}.",
            citation="",
            inputs_description="predictions and references: class indices, or scores for stsb.",
            features=Features({"predictions": value, "references": value}),
        )

    def _compute(self, predictions, references) -> dict[str, float]:
        return metrics_of(self._task.metrics, torch.as_tensor(predictions), torch.as_tensor(references))
