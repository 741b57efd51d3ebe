"""Image classification: top-1 and top-5 accuracy, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..figures import Measurement
from ..reading.samples import is_missing
from ..running.forward import logits_of
from .batches import passed
from .labels import check_index, check_kind, class_indices, labels_of
from .samples import AnnotatedImages, check_there, read_annotated

_TARGETS = ("label", "labels", "fine_label", "class")
_TOP = 5


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
    ) -> AnnotatedImages:
        """The labelled images; see `read_annotated`."""
        return read_annotated(self.name, _TARGETS, data=data, data_dir=data_dir, split=split).drawn(max_samples)

    def check(self, model: nn.Module, processor: Any, samples: AnnotatedImages) -> None:
        """Raise if the model cannot be measured on these samples.

        Raises:
            ValueError: another kind of model, no processor, or classes that it does not have.
        """
        check_kind(model, processor, self.name, ("ForImageClassification", "ForImageClassificationWithTeacher"))
        self._targets(model, samples)

    def check_each(self, model: nn.Module, processor: Any, samples: AnnotatedImages) -> None:
        """Labels were checked with the model; an image that cannot be read shows when it is its turn."""

    def measure(self, model: nn.Module, processor: Any, samples: AnnotatedImages, batch_size: int) -> Measurement:
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
            logits = _logits(batch.outputs, (len(batch.places), classes), model)
            ranks[batch.places] = rank_of(logits.float().cpu(), torch.tensor(batch.annotations))
        return Measurement(accuracies(ranks, classes))

    def show(self, samples: AnnotatedImages, shown: dict[str, Any]) -> dict[str, bytes]:
        """There is no picture of a class."""
        return {}

    def _targets(self, model: nn.Module, samples: AnnotatedImages) -> list[int]:
        """The model's class of each sample."""
        known = labels_of(model, self._labels)
        names = getattr((getattr(samples.rows, "features", None) or {}).get(samples.target), "names", None)
        labels = samples.targets()
        for place, label in enumerate(labels):
            if is_missing(label):
                check_there(label, samples.name(place), "label")
        used = sorted(set(labels), key=str)
        if names is None and all(isinstance(label, str) for label in used):
            indices = class_indices(used, known, samples.source)
        else:
            for label in used:
                place = labels.index(label)
                if isinstance(label, bool) or not isinstance(label, int):
                    name = samples.name(place)
                    raise ValueError(f"{name} has the label {label!r}: it must be a class's name or index.")
                if names is not None and not 0 <= label < len(names):
                    raise ValueError(
                        f"{samples.name(place)} has the label {label}, which is none of the {len(names)} classes of "
                        f"{samples.source}: this split may have no labels."
                    )
                if names is None:
                    check_index(label, len(known), samples.name(place))
            indices = used if names is None else _indices(names, used, known, samples)
        index_of = dict(zip(used, indices, strict=True))
        return [index_of[label] for label in labels]


def rank_of(logits: Tensor, targets: Tensor) -> Tensor:
    """How many classes are likelier than the true one; of equals, those that come first.

    Args:
        logits: shape (samples, classes).
        targets: class indices, shape (samples,).
    """
    order = logits.argsort(dim=-1, descending=True, stable=True)
    return (order == targets[:, None]).int().argmax(-1)


def accuracies(ranks: Tensor, classes: int) -> dict[str, tuple[float, float]]:
    """Top-1 and, with more than five classes, top-5 accuracy, each with its binomial standard error.

    Args:
        ranks: from `rank_of`, shape (samples,).
        classes: how many classes there are.
    """
    tops = {"accuracy": 1, **({f"top_{_TOP}_accuracy": _TOP} if classes > _TOP else {})}
    shares = {name: float((ranks < top).double().mean()) for name, top in tops.items()}
    return {name: (share, math.sqrt(share * (1 - share) / len(ranks))) for name, share in shares.items()}


def _indices(names: Sequence[str], used: Sequence[int], known: Sequence[str], samples: AnnotatedImages) -> list[int]:
    """The model's index of each class that is used; classes without images do not matter, unless order decides."""
    if len(names) == len(known):
        every = class_indices(names, known, samples.source)
        return [every[label] for label in used]
    return class_indices([names[label] for label in used], known, samples.source)


def _logits(outputs: dict[str, Any], shape: tuple[int, int], model: nn.Module) -> Tensor:
    logits = logits_of(outputs)
    if logits is None or tuple(logits.shape) != shape:
        found = None if logits is None else tuple(logits.shape)
        raise ValueError(
            f"image-classification needs logits of shape {shape} of this batch, {type(model).__name__} gives {found}."
        )
    if not logits.isfinite().all():
        raise ValueError("the model's outputs on image-classification are not finite: its weights are damaged.")
    return logits
