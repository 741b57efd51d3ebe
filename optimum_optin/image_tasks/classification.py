"""Image classification: top-1 and top-5 accuracy, with their standard errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..annotations.accuracy import TARGETS, accuracies, class_logits, rank_of
from ..annotations.labels import check_kind, labels_of, target_indices
from ..annotations.samples import AnnotatedSamples, read_annotated
from ..figures import Measurement
from .batches import passed


class ImageClassification:
    """Top-1 and top-5 accuracy of a classifier.

    Samples come from a folder of one folder for each class, or of such below `validation` and the like; or from a data
    set with columns `image` and `label`. Classes are matched by name with the model's.

    Args:
        labels: the names of the model's classes, in their order; `None` takes its config's.
    """

    name = "image-classification"

    def __init__(self, labels: Sequence[str] | None = None):
        self._labels = labels

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> AnnotatedSamples:
        """The labelled images; see `read_annotated`."""
        return read_annotated(self.name, TARGETS, data=data, data_dir=data_dir, split=split).drawn(max_samples)

    def check(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Raise if the model cannot be measured on these samples.

        Raises:
            ValueError: another kind of model, no processor, or classes that it does not have.
        """
        check_kind(model, processor, self.name, ("ForImageClassification", "ForImageClassificationWithTeacher"))
        self._targets(model, samples)

    def check_each(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Labels were checked with the model; an image that cannot be read shows when it is its turn."""

    def measure(self, model: nn.Module, processor: Any, samples: AnnotatedSamples, batch_size: int) -> Measurement:
        """The share of images whose class is the likeliest one, and among the five likeliest if there are more.

        Raises:
            ValueError: outputs that are no logits by class, or not finite; or an image that cannot be read.
        """
        targets, classes = self._targets(model, samples), len(labels_of(model, self._labels))
        ranks = torch.zeros(len(samples), dtype=torch.long)
        batches = passed(
            model, processor, samples, batch_size, task=self.name, annotated=lambda place, size: targets[place]
        )
        for batch in batches:
            logits = class_logits(batch.outputs, (len(batch.places), classes), model, self.name)
            ranks[batch.places] = rank_of(logits.float().cpu(), torch.tensor(batch.annotations))
        return Measurement(accuracies(ranks, classes))

    def show(self, samples: AnnotatedSamples, shown: dict[str, Any]) -> dict[str, bytes]:
        """There is no picture of a class."""
        return {}

    def _targets(self, model: nn.Module, samples: AnnotatedSamples) -> list[int]:
        return target_indices(samples, labels_of(model, self._labels))
