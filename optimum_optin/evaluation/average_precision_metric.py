"""COCO's mean average precision for `evaluate`, by pycocotools. `evaluate.load` of this very file works, too."""

from __future__ import annotations

import datasets
import evaluate

from optimum_optin.image_tasks.average_precision import Boxes, mean_average_precision


class MeanAveragePrecision(evaluate.Metric):
    """mAP of boxes (x, y, width, height); `compute` takes `num_labels`, how many categories there are.

    Example:
        >>> from optimum_optin.evaluation.average_precision_metric import MeanAveragePrecision
        >>> found = [{"boxes": [[1, 1, 8, 8]], "labels": [0], "scores": [0.9]}]
        >>> true = [{"boxes": [[1, 1, 8, 8]], "labels": [0]}]
        >>> round(MeanAveragePrecision().compute(predictions=found, references=true, num_labels=2)["map"], 6)
        1.0
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        numbers, whole = datasets.Value("float64"), datasets.Value("int64")
        true = {"boxes": datasets.Sequence(datasets.Sequence(numbers)), "labels": datasets.Sequence(whole)}
        found = {**true, "scores": datasets.Sequence(numbers)}
        return evaluate.MetricInfo(
            description="Mean average precision over overlaps of 0.5 to 0.95, at 0.5 and at 0.75.",
            citation="",
            inputs_description="predictions: boxes, labels and scores of each image; references: boxes and labels.",
            features=datasets.Features({"predictions": found, "references": true}),
        )

    def _compute(self, predictions, references, *, num_labels: int) -> dict[str, float]:
        found = [Boxes(each["boxes"], each["labels"], scores=each["scores"]) for each in predictions]
        true = [Boxes(each["boxes"], each["labels"]) for each in references]
        metrics, _ = mean_average_precision(true, found, num_labels)
        return {name: value for name, (value, _) in metrics.items()}
