"""Maps of labels (segmentation), which lie beside images in data sets and are none: recognised, so as to be refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_COLUMNS = ("annotation", "annotations", "label", "labels", "mask", "masks", "segmentation", "segmentation_map")
_OF_IDS = ("1", "L", "P", "I", "I;16")  # Pillow's modes of images with one whole number for each pixel
_IGNORED = 255  # the id of what has no label, in most data sets
_SMOOTH = 0.95  # share of neighbours that are equal, from which a picture is made of areas


def without_maps(columns: Sequence[str], segmenter: bool) -> list[str]:
    """Columns of images without those that hold maps of labels by their names.

    Args:
        columns: their names.
        segmenter: whether they are for a segmenter, which is calibrated with images alone.

    Raises:
        ValueError: there are no others for a segmenter.
    """
    images = [name for name in columns if name not in _COLUMNS]
    if columns and not images and segmenter:
        raise ValueError(
            f"the calibration data hold no images but those of {' and '.join(map(repr, columns))}, which are maps of "
            "labels by that name: give the images themselves (no labels are needed), in a column called 'image'."
        )
    return images or list(columns)


def check_no_map(image: Any, labels: int, name: str | None) -> None:
    """Raise if an image is a map of labels: an id for each pixel, in areas.

    Args:
        image: one of Pillow's.
        labels: how many labels there are.
        name: the image's file; `None` if it has none.

    Raises:
        ValueError: names it, and says what to give.
    """
    if image.mode not in _OF_IDS:
        return
    ids = np.asarray(image)
    found = set(np.unique(ids).tolist())
    known = {*range(labels + 1), _IGNORED}  # some count labels from 1
    flat = ids.shape[1] > 1 and (ids[:, 1:] == ids[:, :-1]).mean() > _SMOOTH
    if len(found) > 1 and found <= known and found != {0, _IGNORED} and flat:
        numbers = ", ".join(map(str, sorted(found)[:5])) + (", ..." if len(found) > 5 else "")
        raise ValueError(
            f"{name or 'an image of the calibration data'} is a map of labels (mode {image.mode!r}, with the ids "
            f"{numbers}), not an image: give the images themselves; calibration needs no labels."
        )
