"""Mean IoU for `evaluate`, without the network that `evaluate.load("mean_iou")` needs.

`evaluate.load` of this very file works, too: what it imports stands here by its full name.
"""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
import torch

from optimum_optin.image_tasks.confusion import Confusion


class MeanIou(evaluate.Metric):
    """Mean IoU, pixel accuracy and each class's IoU of maps of classes.

    `compute` takes `num_labels`, how many classes there are, and `ignore_index`, the class of pixels that do not count.

    Example:
        >>> from optimum_optin.evaluation.mean_iou_metric import MeanIou
        >>> MeanIou().compute(predictions=[[[0, 1], [1, 1]]], references=[[[0, 1], [0, 1]]], num_labels=2)["mean_iou"]
        0.5833333333333333
    """

    def __init__(self, config_name: str | None = None, keep_in_memory: bool = True, **kwargs):
        super().__init__(config_name, keep_in_memory=keep_in_memory, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        maps = datasets.Sequence(datasets.Sequence(datasets.Value("int64")))
        return evaluate.MetricInfo(
            description="Mean IoU over classes that are somewhere, and the share of pixels whose class is right.",
            citation="",
            inputs_description="predictions and references: a class for each pixel, lists of (height, width).",
            features=datasets.Features({"predictions": maps, "references": maps}),
        )

    def _compute(self, predictions, references, *, num_labels: int, ignore_index: int = 255) -> dict:
        confusion = Confusion(num_labels, ignore_index)
        for predicted, true in zip(predictions, references, strict=True):
            confusion.add(torch.from_numpy(np.array(predicted)), torch.from_numpy(np.array(true)))
        return {
            "mean_iou": confusion.mean_iou()[0],
            "pixel_accuracy": confusion.pixel_accuracy()[0],
            "per_category_iou": confusion.class_iou().tolist(),
        }
