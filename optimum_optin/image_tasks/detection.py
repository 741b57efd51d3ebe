"""Object detection: COCO's mean average precision of the boxes that the model's processor makes of its outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from ..annotations.labels import check_index, check_kind, class_indices, labels_of
from ..annotations.samples import AnnotatedSamples, read_annotated
from ..figures import Measurement
from .average_precision import Boxes, check_installed, mean_average_precision
from .batches import passed
from .boxes import TARGETS, boxes_of, category_names, read_coco
from .opening import check_uncropped

_MOST = 100  # boxes of an image, as COCO counts them
_KINDS = ("ForObjectDetection", "ForSegmentation")


class ObjectDetection:
    """Mean average precision of a detector, as pycocotools computes it.

    Samples come from a folder with images and a JSON file in COCO's form; or from a data set with columns `image` and
    `objects`, whose `bbox` are (x, y, width, height) in pixels. Categories are matched by name with the model's
    classes.

    Args:
        labels: the names of the model's classes, in their order; `None` takes its config's.
    """

    name = "object-detection"

    def __init__(self, labels: Sequence[str] | None = None):
        self._labels = labels

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> AnnotatedSamples:
        """The annotated images; see `read_annotated`.

        Raises:
            ValueError: see there; or a JSON file that is not in COCO's form, or of images that are not there.
            ImportError: pycocotools is missing.
        """
        check_installed()
        options = {"data": data, "data_dir": data_dir, "split": split}
        return read_annotated(self.name, TARGETS, **options, read_folder=read_coco).drawn(max_samples)

    def check(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Raise if the model cannot be measured on these samples.

        Raises:
            ValueError: another kind of model, no processor, one that crops images, or categories that it does not have.
        """
        check_kind(model, processor, self.name, _KINDS)
        check_uncropped(processor, self.name)
        self._classes(model, samples)

    def check_each(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Raise if an annotation cannot be used, or there is no box at all.

        Raises:
            ValueError: names the file.
        """
        names = self._names(samples) or labels_of(model, self._labels)
        boxes = 0
        for place in range(len(samples)):
            found = boxes_of(samples.rows[place][samples.target], samples.name(place))
            for label in found.labels:
                check_index(label, len(names), samples.name(place))
            boxes += len(found.labels)
        if not boxes:
            raise ValueError(f"none of {len(samples)} images of {samples.source} has a box: there is nothing to find.")

    def measure(self, model: nn.Module, processor: Any, samples: AnnotatedSamples, batch_size: int) -> Measurement:
        """AP averaged over overlaps of 0.5 to 0.95, at 0.5 and at 0.75; and each category's AP.

        Raises:
            ValueError: outputs that no boxes can be made of.
        """
        classes = self._classes(model, samples)
        place_of = None if classes is None else {index: place for place, index in enumerate(classes)}

        def annotated(place: int, size: tuple[int, int]) -> Boxes:
            return boxes_of(samples.rows[place][samples.target], samples.name(place))

        true: list[Boxes | None] = [None] * len(samples)
        predicted: list[Boxes | None] = [None] * len(samples)
        for batch in passed(model, processor, samples, batch_size, task=self.name, annotated=annotated):
            found = found_boxes(batch.outputs, batch.sizes, processor)
            for place, known, each in zip(batch.places, batch.annotations, found, strict=True):
                true[place], predicted[place] = known, _of_categories(each, place_of)
        names = labels_of(model, self._labels) if classes is None else self._names(samples)
        metrics, by_category = mean_average_precision(true, predicted, len(names))
        return Measurement(metrics, {names[place]: value for place, value in by_category.items()})

    def show(self, samples: AnnotatedSamples, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of boxes yet."""
        return {}

    def _names(self, samples: AnnotatedSamples) -> list[str] | None:
        return category_names(samples)

    def _classes(self, model: nn.Module, samples: AnnotatedSamples) -> list[int] | None:
        """The model's class of each category; `None` if the data have no names, so that both are one."""
        names = self._names(samples)
        if names is None:
            labels_of(model, self._labels)
            return None
        return class_indices(names, labels_of(model, self._labels), samples.source)


def found_boxes(outputs: Mapping[str, Any], sizes: Sequence[tuple[int, int]], processor: Any) -> list[Boxes]:
    """The boxes of each image, likeliest first, by the processor's `post_process_object_detection`.

    Args:
        outputs: the model's outputs by name.
        sizes: height and width of each image.
        processor: the model's image processor.

    Raises:
        ValueError: the processor makes no boxes of these outputs.
    """
    processor = getattr(processor, "image_processor", processor)
    if not hasattr(processor, "post_process_object_detection"):
        raise ValueError(
            f"{type(processor).__name__} has no post_process_object_detection: pass the image processor that belongs "
            "to this model."
        )
    try:
        each = processor.post_process_object_detection(SimpleNamespace(**outputs), threshold=0.0, target_sizes=[*sizes])
    except AttributeError as error:
        raise ValueError(
            f"{type(processor).__name__} makes no boxes of {', '.join(outputs)} ({error}): pass the image processor "
            "that belongs to this model."
        ) from error
    return [_sorted_boxes(**{name: value.float().cpu() for name, value in found.items()}) for found in each]


def _sorted_boxes(scores: torch.Tensor, labels: torch.Tensor, boxes: torch.Tensor, **_: Any) -> Boxes:
    order = scores.argsort(descending=True, stable=True)[:_MOST]
    corners = boxes[order].double()
    sides = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1)  # (x, y, x, y) -> (x, y, w, h)
    return Boxes(sides.tolist(), labels[order].long().tolist(), scores=scores[order].tolist())


def _of_categories(found: Boxes, place_of: Mapping[int, int] | None) -> Boxes:
    """The boxes of classes that the data have, by their categories."""
    if place_of is None:
        return found
    kept = [place for place, label in enumerate(found.labels) if label in place_of]
    labels = [place_of[found.labels[place]] for place in kept]
    return Boxes([found.boxes[place] for place in kept], labels, scores=[found.scores[place] for place in kept])
