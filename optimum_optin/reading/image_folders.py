"""Images of a folder as a `datasets.Dataset`: files, their classes if folders tell them, metadata beside them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .kinds import kind_of
from .rows import read_rows

METADATA = "metadata"  # name of the file, as in `datasets`' imagefolder
_KEYS = ("file_name", "file_path", "image")


def read_images(files: Sequence[Path], metadata: Sequence[Path] = (), everywhere: Sequence[Path] = ()):
    """One row for each image: `image`, and its class or its metadata where these are known.

    Args:
        files: the images.
        metadata: files called `metadata`, with a column `file_name` that names images relative to them.
        everywhere: the images of all splits, whose folders are the classes; empty if folders are no classes.

    Raises:
        ValueError: metadata that name no image, or have no column for it.
    """
    from datasets import ClassLabel, Dataset, Features, Image  # slow to import

    columns: dict[str, list] = {"image": [str(file) for file in files]}
    if metadata:
        columns |= _metadata(files, metadata)
    classes = sorted({file.parent.name for file in everywhere})
    if not metadata and len(classes) > 1:
        columns["label"] = [classes.index(file.parent.name) for file in files]
        features = Features({"image": Image(), "label": ClassLabel(names=classes)})
        return Dataset.from_dict(columns, features=features)
    return Dataset.from_dict(columns).cast_column("image", Image())


def _metadata(files: Sequence[Path], metadata: Sequence[Path]) -> dict[str, list]:
    """Columns of the metadata, in the order of the files; `None` for an image that they do not name."""
    rows: dict[Path, dict] = {}
    names: dict[str, None] = {}
    for file in metadata:
        dataset = read_rows([file], kind_of(file) or "text")
        key = next((name for name in _KEYS if name in dataset.column_names), None)
        if key is None:
            found = ", ".join(dataset.column_names) or "none"
            raise ValueError(f"{file} must have a column file_name that names the images; it has {found}.")
        for row in dataset:
            place = row.pop(key)
            if isinstance(place, str):
                rows[(file.parent / place).resolve()] = row
            names |= dict.fromkeys(row)
    known = [rows.get(file.resolve()) for file in files]
    if not any(each is not None for each in known):
        raise ValueError(f"{metadata[0]} names none of the {len(files)} images beside it.")
    return {name: [(each or {}).get(name) for each in known] for name in names if name != "image"}
