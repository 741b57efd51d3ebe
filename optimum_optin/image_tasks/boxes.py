"""Boxes of objects in images: from a JSON file in COCO's form, or from a column of a data set."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..annotations.samples import AnnotatedSamples, check_there
from .average_precision import Boxes

TARGETS = ("objects", "annotations")
_SPLITS = (("validation", "valid", "val"), ("test",), ("train",))  # the first that there is, by any of its names


@dataclass(frozen=True)
class CocoImages(AnnotatedSamples):
    """Images of a JSON file in COCO's form.

    Args:
        categories: their names.
    """

    categories: tuple[str, ...] = ()


def category_names(samples: AnnotatedSamples) -> list[str] | None:
    """The names of categories, `None` if the data have only numbers."""
    if isinstance(samples, CocoImages):
        return list(samples.categories)
    feature = (getattr(samples.rows, "features", None) or {}).get(samples.target)
    for _ in range(4):  # lists of dicts of lists, in either order
        names = getattr(feature, "names", None)
        if names is not None:
            return list(names)
        if isinstance(feature, Mapping):
            feature = feature.get("category", feature.get("category_id"))
        else:
            feature = feature[0] if isinstance(feature, list) else getattr(feature, "feature", None)
    return None


def boxes_of(objects: Any, name: str) -> Boxes:
    """The boxes in a sample's annotation.

    Args:
        objects: a dict of lists (`bbox`, `category`, perhaps `area` and `iscrowd`), or a list of such dicts.
        name: what messages call the sample.

    Raises:
        ValueError: something is missing, or no box; names the sample.
    """
    check_there(objects, name, "objects")
    if not isinstance(objects, Mapping):
        keys = dict.fromkeys(key for each in objects for key in each)
        for place, each in enumerate(objects):
            if missing := [key for key in keys if key not in each]:
                raise ValueError(f"object {place} of {name} has no {missing[0]}, which others have.")
        objects = {key: [each[key] for each in objects] for key in keys}
    if objects and "bbox" not in objects:
        raise ValueError(f"the objects of {name} have no bbox, but {', '.join(objects)}: a detector finds boxes.")
    boxes = [list(map(float, _box(box, name))) for box in objects.get("bbox", ())]
    labels = objects.get("category", objects.get("category_id"))
    if labels is None and boxes:
        raise ValueError(f"the objects of {name} have no category, but {', '.join(objects)}.")
    found = {"areas": objects.get("area", []), "crowds": objects.get("iscrowd", [])}
    lengths = {"category": labels or [], **{key: value for key, value in found.items() if len(value)}}
    for key, values in lengths.items():
        if len(values) != len(boxes):
            raise ValueError(f"{name} has {len(boxes)} boxes and {len(values)} values of {key}.")
    return Boxes(boxes, [int(label) for label in labels or ()], **{key: list(value) for key, value in found.items()})


def read_coco(folder: Path, split: str | None) -> CocoImages | None:
    """The images and boxes of a folder that holds a JSON file in COCO's form; `None` if it holds none.

    The file is `annotations.json`, `annotations/instances_val2017.json`, `valid/_annotations.coco.json` or the like.
    Images are looked for beside it, in the folder, in `images` and in a folder called like the split.

    Args:
        folder: the folder.
        split: which split; `None` takes validation, else test, else train, else the only file.

    Raises:
        ValueError: several files fit, or none has the split; one that is damaged or in another form; images that are
            not there, or objects without boxes. Names the file.
    """
    files = sorted([*folder.glob("*.json"), *folder.glob("*/*.json")])
    if not files or any(file.name in ("dataset_info.json", "state.json", "dataset_dict.json") for file in files):
        return None
    file, found = _file_of_split(folder, files, split)
    content = _read(file)
    categories = [each["id"] for each in content["categories"]]
    by_image: dict[Any, list[dict]] = {}
    for each in content["annotations"]:
        if "bbox" not in each or not each["bbox"]:
            raise ValueError(f"{file}: annotation {each.get('id')} has no bbox: a detector finds boxes.")
        if each.get("category_id") not in categories:
            raise ValueError(
                f"{file}: annotation {each.get('id')} has the category {each.get('category_id')}, which is none of its "
                f"{len(categories)} categories."
            )
        by_image.setdefault(each.get("image_id"), []).append(each)
    places = {identity: place for place, identity in enumerate(categories)}
    rows = []
    for image in content["images"]:
        objects = by_image.pop(image["id"], [])
        rows.append(
            {"image": str(_image(folder, file, image["file_name"], found)), "objects": _columns(objects, places)}
        )
    if by_image:
        raise ValueError(f"{file}: annotations are of an image {next(iter(by_image))}, which is not among its images.")
    names = tuple(str(each.get("name", each["id"])) for each in content["categories"])
    return CocoImages(rows, "image", "objects", folder.resolve().name, found or "all", categories=names)


def _columns(objects: Sequence[Mapping[str, Any]], places: Mapping[Any, int]) -> dict[str, list]:
    return {
        "bbox": [each["bbox"] for each in objects],
        "category": [places[each["category_id"]] for each in objects],
        "area": [each["area"] if "area" in each else math.prod(each["bbox"][2:]) for each in objects],
        "iscrowd": [each.get("iscrowd", 0) for each in objects],
    }


def _file_of_split(folder: Path, files: Sequence[Path], split: str | None) -> tuple[Path, str | None]:
    """The file of a split, and the split's name, `None` if there is only one file without such a name."""
    boxes = [file for file in files if file.name.startswith("instances_")] or list(files)
    wanted = [names for names in _SPLITS if split in names] or ([(split,)] if split else _SPLITS)
    for names in wanted:
        fitting = [file for file in boxes if any(_named(file.relative_to(folder), name) for name in names)]
        if len(fitting) == 1:
            return fitting[0], names[0]
        if fitting:
            boxes = fitting
            break
    else:
        if len(boxes) == 1 and split is None:
            return boxes[0], None
        if split is not None:
            names = ", ".join(str(file.relative_to(folder)) for file in files)
            raise ValueError(f"{folder} has no JSON file of split {split!r}; it has {names}.")
    names = ", ".join(str(file.relative_to(folder)) for file in boxes)
    raise ValueError(f"{folder} has several JSON files that may hold boxes, {names}: keep one, or name it by split=.")


def _named(file: Path, split: str) -> bool:
    return re.search(rf"(?i)(?:^|[^a-z]){re.escape(split)}(?:[^a-z]|$)", file.with_suffix("").as_posix()) is not None


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}.") from error
    needed = ("images", "annotations", "categories")
    missing = [name for name in needed if not isinstance(content, dict) or not isinstance(content.get(name), list)]
    if missing:
        raise ValueError(f"{file} is not in COCO's form: it has no list of {', '.join(missing)}.")
    return content


def _image(folder: Path, file: Path, name: str, split: str | None) -> Path:
    beside = file.stem.removeprefix("instances_")
    inside = [file.parent, file.parent / "images", folder, folder / "images"]
    inside += [folder / beside, folder / "images" / beside]
    inside += [folder / split, folder / "images" / split] if split else []
    for place in inside:
        if (place / name).is_file():
            return place / name
    raise ValueError(
        f"{file} names the image {name}, which is in none of {', '.join(map(str, dict.fromkeys(inside)))}."
    )


def _box(box: Any, name: str) -> Sequence[float]:
    numbers = list(box) if isinstance(box, (list, tuple)) or hasattr(box, "tolist") else []
    if len(numbers) != 4 or not all(math.isfinite(number) for number in numbers) or min(numbers[2:]) < 0:
        raise ValueError(f"{name} has the box {box!r:.80}: a box is (x, y, width, height) in pixels.")
    return numbers
