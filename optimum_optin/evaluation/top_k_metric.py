"""Top-k accuracy for `evaluate`, without the network. `evaluate.load` of this very file works, too."""

from __future__ import annotations

import datasets
import evaluate
import torch

from optimum_optin.annotations.accuracy import rank_of


class TopKAccuracy(evaluate.Metric):
    """Share of samples whose class is among the `k` likeliest; `compute` takes `k`, 1 by default.

    Example:
        >>> from optimum_optin.evaluation.top_k_metric import TopKAccuracy
        >>> TopKAccuracy().compute(predictions=[[0.1, 0.7, 0.2], [0.3, 0.4, 0.3]], references=[2, 1], k=2)
        {'top_2_accuracy': 1.0}
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        logits = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Share of samples whose class is among the k likeliest.",
            citation="",
            inputs_description="predictions: logits by class; references: class indices.",
            features=datasets.Features({"predictions": logits, "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions, references, *, k: int = 1) -> dict[str, float]:
        ranks = rank_of(torch.as_tensor(predictions), torch.as_tensor(references))
        return {"accuracy" if k == 1 else f"top_{k}_accuracy": float((ranks < k).double().mean())}
