"""Semantic segmentation: mean IoU and pixel accuracy of the maps that the model's processor makes of its outputs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..annotations.labels import check_kind, labels_of
from ..annotations.samples import AnnotatedSamples, check_there, read_annotated
from ..figures import Measurement
from ..files.model_files import MASKS
from ..media.images import open_image
from ..reading.kinds import has_image_suffix
from .batches import opened_image, passed
from .confusion import Confusion
from .opening import check_uncropped
from .pictures import masks_beside

logger = logging.get_logger(__name__)

_TARGETS = ("annotation", "annotations", "mask", "masks", "label", "labels", "segmentation_mask", "label_bitmap")
_SPLITS = ("validation", "val", "test", "training", "train")
_KINDS = ("ForSemanticSegmentation", "ForUniversalSegmentation", "ForInstanceSegmentation", "ForSegmentation")


class SemanticSegmentation:
    """Mean IoU and pixel accuracy of a segmenter.

    Samples come from a folder with `images/` and `annotations/`, whose files have the same names but for the suffix
    (below `validation` and the like, or these below them); or from a data set with columns `image` and `annotation`.

    Args:
        ignore_index: the class of pixels that do not count.
        reduce_labels: annotations count from 1, and 0 does not count; `None` takes what the image processor says.
        labels: the names of the model's classes, in their order; `None` takes its config's.

    Raises:
        ValueError: a value that does not fit.
    """

    name = "semantic-segmentation"

    def __init__(self, ignore_index: int = 255, reduce_labels: bool | None = None, labels: Sequence[str] | None = None):
        if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
            raise ValueError(f"ignore_index={ignore_index!r} must be a whole number, as annotations hold.")
        if reduce_labels not in (None, True, False):
            raise ValueError(f"reduce_labels={reduce_labels!r} must be True, False, or None for the processor's own.")
        self._ignored = ignore_index
        self._reduced = reduce_labels
        self._labels = labels

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> AnnotatedSamples:
        """The annotated images; see `read_annotated`.

        Raises:
            ValueError: see there; or an image without an annotation, which is named.
        """
        options = {"data": data, "data_dir": data_dir, "split": split}
        return read_annotated(self.name, _TARGETS, **options, read_folder=read_pairs).drawn(max_samples)

    def check(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Raise if the model cannot be measured on these samples.

        Raises:
            ValueError: another kind of model, no processor, one that crops images, or no names of its classes.
        """
        check_kind(model, processor, self.name, _KINDS)
        check_uncropped(processor, self.name)
        labels_of(model, self._labels)

    def check_each(self, model: nn.Module, processor: Any, samples: AnnotatedSamples) -> None:
        """Raise if an annotation cannot be used, or nothing in all of them counts.

        Raises:
            ValueError: names the file.
        """
        classes, reduced, counted = len(labels_of(model, self._labels)), self._reduces(processor), 0
        for place in range(len(samples)):
            size = opened_image(samples, place).shape[:2]
            counted += int((self._annotation(samples, place, size, classes, reduced) != self._ignored).sum())
        if not counted:
            raise ValueError(
                f"no pixel of {len(samples)} annotations of {samples.source} counts: all have ignore_index="
                f"{self._ignored}{', or 0 with reduce_labels=True' if reduced else ''}."
            )

    def measure(self, model: nn.Module, processor: Any, samples: AnnotatedSamples, batch_size: int) -> Measurement:
        """Mean IoU, pixel accuracy and each class's IoU, at the size of the annotations.

        Raises:
            ValueError: outputs that no map can be made of.
        """
        labels = labels_of(model, self._labels)
        confusion, shown = Confusion(len(labels), self._ignored), None
        reduced = self._reduces(processor)

        def annotated(place: int, size: tuple[int, int]) -> Tensor:
            return self._annotation(samples, place, size, len(labels), reduced)

        for batch in passed(model, processor, samples, batch_size, task=self.name, annotated=annotated):
            predicted = semantic_maps(batch.outputs, batch.filled, processor)
            for place, size, true, found in zip(batch.places, batch.sizes, batch.annotations, predicted, strict=True):
                real = found[: size[0], : size[1]]
                confusion.add(real, true)
                shown = real.numpy() if place == 0 else shown
        metrics = {"mean_iou": confusion.mean_iou(), "pixel_accuracy": confusion.pixel_accuracy()}
        by_class = dict(zip(labels, confusion.class_iou().tolist(), strict=True))
        return Measurement(metrics, {name: value for name, value in by_class.items() if not math.isnan(value)}, shown)

    def show(self, samples: AnnotatedSamples, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """The first image and the models' maps of it, side by side, as a PNG file: name -> content."""
        return {MASKS: masks_beside(opened_image(samples, 0), list(shown.values()))}

    def _reduces(self, processor: Any) -> bool:
        return self._reduced if self._reduced is not None else reduces_labels(processor)

    def _annotation(
        self, samples: AnnotatedSamples, place: int, size: tuple[int, int], classes: int, reduced: bool
    ) -> Tensor:
        value = samples.rows[place][samples.target]
        name = _file_of(value) or samples.name(place)
        check_there(value, samples.name(place), "annotation")
        found = torch.from_numpy(read_annotation(value, name).astype(np.int64))
        if tuple(found.shape) != tuple(size):
            raise ValueError(
                f"{name} is {found.shape[1]} x {found.shape[0]} pixels, and its image {size[1]} x {size[0]}: an "
                "annotation has the size of its image."
            )
        if reduced:
            found = torch.where((found == 0) | (found == self._ignored), self._ignored, found - 1)
        beyond = found[(found != self._ignored) & ((found < 0) | (found >= classes))]
        if beyond.numel():
            raise ValueError(
                f"{name} has the class {int(beyond.max()) + reduced}, and the model {classes} classes, {int(reduced)} "
                f"to {classes - 1 + reduced}: set ignore_index= if it does not count (it is {self._ignored}), or "
                f"reduce_labels={not reduced} if annotations count from {int(not reduced)}."
            )
        return found


def read_pairs(folder: Path, split: str | None) -> AnnotatedSamples | None:
    """Images and annotations of the same names, from `images/` and `annotations/`; `None` if a folder has no such.

    Args:
        folder: holds both, or a folder of each split that holds both; or both hold folders of splits.
        split: which split; `None` takes validation, else test, else train, if there are any.

    Raises:
        ValueError: no such split, or images without annotations; names the first.
    """
    splits = [split] if split else [*_SPLITS]
    if split == "validation":
        splits.append("val")
    for name in splits:
        for form in (f"{name}/{{}}", f"{{}}/{name}"):
            if (folder / form.format("images")).is_dir():
                places = form.format("images"), form.format("annotations")
                return _paired(folder, *places, "validation" if name == "val" else name)
    if not (folder / "images").is_dir():
        return None
    if split and split != "all":
        raise ValueError(f"{folder} has no split {split!r}: there is no {split}/images and no images/{split}.")
    return _paired(folder, "images", "annotations", "all")


def _paired(folder: Path, images: str, annotations: str, split: str) -> AnnotatedSamples:
    if not (folder / annotations).is_dir():
        raise ValueError(f"{folder / images} has no annotations: {folder / annotations} is missing.")
    masks = {_stem(file, folder / annotations): file for file in _files(folder / annotations)}
    rows = []
    for file in _files(folder / images):
        stem = _stem(file, folder / images)
        if stem not in masks:
            raise ValueError(f"{file} has no annotation: {folder / annotations / stem}.png is missing.")
        rows.append({"image": str(file), "annotation": str(masks.pop(stem))})
    if masks and rows:
        first = next(iter(masks.values()))
        logger.warning(f"{len(masks)} annotations have no image and are not read, the first is {first}.")
    return AnnotatedSamples(rows, "image", "annotation", folder.resolve().name, split)


def _files(folder: Path) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
    return sorted(file for file in files if has_image_suffix(str(file)))


def _stem(file: Path, folder: Path) -> str:
    return file.relative_to(folder).with_suffix("").as_posix()


def read_annotation(value: Any, name: str) -> np.ndarray:
    """The classes in an annotation, shape (height, width).

    Args:
        value: a file, its content, an image of Pillow's, or an array.
        name: what messages call it.

    Raises:
        ValueError: it cannot be read, or holds colours; names it.
    """
    if isinstance(value, (np.ndarray, list)):
        found = np.asarray(value)
    else:
        try:
            opened = open_image(value)
        except (OSError, ValueError, SyntaxError) as error:
            raise ValueError(f"{name} cannot be read as an annotation: {error}.") from error
        if len(opened.getbands()) > 1:
            raise ValueError(
                f"{name} is an image of colours ({opened.mode}): an annotation holds the number of a class for each "
                "pixel (mode L, P or I;16). Turn each colour into its class first."
            )
        found = np.asarray(opened)
    if found.ndim != 2 or not (np.issubdtype(found.dtype, np.integer) or found.dtype == bool):
        raise ValueError(
            f"{name} has the shape {found.shape} and the type {found.dtype}: an annotation holds the number of a class "
            "for each pixel, (height, width)."
        )
    return found


def reduces_labels(processor: Any) -> bool:
    """Whether an image processor takes annotations that count from 1, with 0 for what does not count."""
    names = ("do_reduce_labels", "reduce_labels")
    return any(getattr(processor, name, False) is True for name in names)


def semantic_maps(outputs: Mapping[str, Any], sizes: list[tuple[int, int]], processor: Any) -> list[Tensor]:
    """A class for each pixel of each image, by the processor's `post_process_semantic_segmentation`.

    A processor that has none (it was made for another head) leaves logits of shape (batch, classes, height, width),
    which are resized to the images' sizes.

    Args:
        outputs: the model's outputs by name.
        sizes: height and width of each image.
        processor: the model's image processor.

    Raises:
        ValueError: no map can be made of these outputs.
    """
    processor = getattr(processor, "image_processor", processor)
    if hasattr(processor, "post_process_semantic_segmentation"):
        try:
            maps = processor.post_process_semantic_segmentation(SimpleNamespace(**outputs), target_sizes=sizes)
            return [each.cpu() for each in maps]
        except AttributeError as error:
            raise ValueError(
                f"{type(processor).__name__} makes no maps of {', '.join(outputs)} ({error}): pass the image processor "
                "that belongs to this model."
            ) from error
    logits = outputs.get("logits")
    if not isinstance(logits, Tensor) or logits.dim() != 4:
        raise ValueError(
            f"{type(processor).__name__} has no post_process_semantic_segmentation, and the model no logits of shape "
            "(batch, classes, height, width): pass the image processor that belongs to this model."
        )
    resized = (
        nn.functional.interpolate(each[None].float(), size=size, mode="bilinear", align_corners=False)[0]
        for each, size in zip(logits, sizes, strict=True)
    )
    return [each.argmax(0).cpu() for each in resized]


def _file_of(value: Any) -> str | None:
    value = value.get("path") if isinstance(value, Mapping) else value
    return str(value) if isinstance(value, (str, os.PathLike)) else None
