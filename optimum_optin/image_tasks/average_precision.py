"""COCO's mean average precision, by pycocotools, with standard errors over images."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..annotations.jackknife import jackknife

_AT_50, _AT_75 = 0, 5  # places among the overlaps 0.5, 0.55, ..., 0.95


@dataclass(frozen=True)
class Boxes:
    """Boxes of one image.

    Args:
        boxes: (x, y, width, height) of each, in pixels.
        labels: the category of each.
        scores: how sure a model is of each; empty for annotations.
        areas: the area of each, where the data give it, else empty.
        crowds: whether each is a crowd, which need not be found; empty for none.
    """

    boxes: list[list[float]]
    labels: list[int]
    scores: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)


def check_installed() -> None:
    """Raise if pycocotools is missing.

    Raises:
        ImportError: says how to install it.
    """
    if importlib.util.find_spec("pycocotools") is None:
        raise ImportError("mean average precision needs pycocotools: pip install pycocotools.")


def mean_average_precision(
    true: Sequence[Boxes], predicted: Sequence[Boxes], categories: int
) -> tuple[dict[str, tuple[float, float | None]], dict[int, float]]:
    """mAP over overlaps of 0.5 to 0.95, at 0.5 and at 0.75; all areas, at most 100 boxes of an image.

    Standard errors are those of a jackknife that leaves out one of 20 groups of images in turn (of fewer images, one).

    Args:
        true: annotations of each image.
        predicted: what the model found in each image.
        categories: how many categories there are.

    Returns:
        Metric -> value and standard error, `None` with a single image; and category -> its AP, of those that have
        boxes.
    """
    check_installed()
    images = len(true)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        evaluated = _evaluated(true, predicted, categories)
        whole = _precision(evaluated, range(images))
        errors = jackknife(images, lambda places: _summary(_precision(evaluated, places)))
    by_category = {place: float(_mean(whole[:, :, place])) for place in range(categories)}
    found = {place: value for place, value in by_category.items() if not math.isnan(value)}
    return {name: (value, errors.get(name)) for name, value in _summary(whole).items()}, found


def _evaluated(true: Sequence[Boxes], predicted: Sequence[Boxes], categories: int) -> Any:
    """pycocotools' evaluation of every image; both ids, of images and categories, are places and one more."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations, results = [], []
    for place, each in enumerate(true, start=1):
        for index, (box, label) in enumerate(zip(each.boxes, each.labels, strict=True)):
            area = each.areas[index] if each.areas else box[2] * box[3]
            crowd = int(each.crowds[index]) if each.crowds else 0
            entry = {"id": len(annotations) + 1, "image_id": place, "category_id": label + 1, "bbox": box}
            annotations.append({**entry, "area": area, "iscrowd": crowd})
    for place, each in enumerate(predicted, start=1):
        for box, label, score in zip(each.boxes, each.labels, each.scores, strict=True):
            results.append(
                {
                    "id": len(results) + 1,
                    "image_id": place,
                    "category_id": label + 1,
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    sides = []
    for entries in (annotations, results):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": place} for place in range(1, len(true) + 1)],
            "annotations": entries,
            "categories": [{"id": place, "name": str(place)} for place in range(1, categories + 1)],
        }
        coco.createIndex()
        sides.append(coco)
    evaluation = COCOeval(*sides, "bbox")
    evaluation.evaluate()
    return evaluation


def _precision(evaluated: Any, places: Sequence[int]) -> np.ndarray:
    """Precision by overlap, recall and category, of some images; -1 where a category has no boxes."""
    part, parameters = copy.copy(evaluated), evaluated.params
    shape = len(parameters.catIds), len(parameters.areaRng), len(parameters.imgIds)
    by_image = np.empty(shape, dtype=object)
    by_image.reshape(-1)[:] = evaluated.evalImgs
    part.params = copy.deepcopy(parameters)
    part.params.imgIds = [parameters.imgIds[place] for place in places]
    part._paramsEval = copy.deepcopy(part.params)
    part.evalImgs = by_image[:, :, list(places)].reshape(-1).tolist()
    part.accumulate()
    return part.eval["precision"][:, :, :, 0, -1]  # of all areas, with most boxes


def _summary(precision: np.ndarray) -> dict[str, float]:
    at = {"map": precision, "map_50": precision[_AT_50], "map_75": precision[_AT_75]}
    return {name: float(_mean(part)) for name, part in at.items()}


def _mean(precision: np.ndarray) -> float:
    there = precision[precision > -1]
    return there.mean() if there.size else float("nan")
