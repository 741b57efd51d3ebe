"""Maps of labels (segmentation), which lie beside images in data sets and are none: recognised, so as to be refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

_COLUMNS = ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation", "segmentation_map")
_OF_IDS = ("1", "L", "P", "I", "I;16")  # Pillow's modes of images with one whole number for each pixel
_IGNORED = 255  # the id of what has no label, in most data sets
_SMOOTH = 0.95  # share of neighbours that are equal, from which a picture is made of areas


def without_maps(columns: Sequence[str], model: nn.Module) -> list[str]:
    """Columns of images without those that hold maps of labels by their names.

    Raises:
        ValueError: there are no others, and the model is a segmenter, which is calibrated with images alone.
    """
    images = [name for name in columns if name not in _COLUMNS]
    if columns and not images and predicts_maps(model):
        raise ValueError(
            f"the calibration data hold no images but those of {' and '.join(map(repr, columns))}, which are maps of "
            "labels by that name: give the images themselves (no labels are needed), in a column called 'image'."
        )
    return images or list(columns)


def check_no_map(image: Any, model: nn.Module, name: str | None) -> None:
    """Raise if an image is a map of labels: ids of the model's labels, one for each pixel, in areas.

    Args:
        image: one of Pillow's.
        model: the model; images for others than segmenters are taken as they are.
        name: the image's file; `None` if it has none.

    Raises:
        ValueError: names it, and says what to give.
    """
    if image.mode not in _OF_IDS or not predicts_maps(model):
        return
    ids = np.asarray(image)
    found = set(np.unique(ids).tolist())
    labels = getattr(model.config, "num_labels", 0)
    known = {*range(labels + 1), _IGNORED}  # some count labels from 1
    flat = ids.shape[1] > 1 and (ids[:, 1:] == ids[:, :-1]).mean() > _SMOOTH
    if len(found) > 1 and found <= known and found != {0, _IGNORED} and flat:
        numbers = ", ".join(map(str, sorted(found)[:5])) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"{name or 'an image of the calibration data'} is a map of labels (mode {image.mode!r}, with the ids "
            f"{numbers}), not an image: give the images themselves; calibration needs no labels."
        )


def predicts_maps(model: nn.Module) -> bool:
    """Whether a model is a segmenter, by the name of its class or of one that it is made from."""
    return any("Segment" in each.__name__ for each in type(model).__mro__)
