"""Images or sounds of a folder as a `datasets.Dataset`: files, their classes if folders tell them, metadata beside
them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from .kinds import kind_of
from .rows import read_rows

METADATA = "metadata"  # name of the file, as in `datasets`' imagefolder and audiofolder
MEDIA = {"image": "image", "sound": "audio"}
"""Kind of file -> the column that such files become."""
_KEYS = ("file_name", "file_path")


def read_media(kind: str, files: Sequence[Path], metadata: Sequence[Path] = (), everywhere: Sequence[Path] = ()):
    """One row for each file: `image` or `audio`, and its class or its metadata where these are known.

    Args:
        kind: a key of `MEDIA`.
        files: the files, all of this kind.
        metadata: files called `metadata`, with a column `file_name` that names the others relative to them.
        everywhere: the files of all splits, whose folders are the classes; empty if folders are no classes.

    Raises:
        ValueError: metadata that name no such file, or have no column for it.
    """
    from datasets import Audio, ClassLabel, Dataset, Image  # slow to import

    column, feature = MEDIA[kind], {"image": Image, "sound": Audio}[kind]()
    columns: dict[str, list] = {column: [str(file) for file in files]}
    if metadata:
        columns |= _metadata(kind, files, metadata)
    classes = sorted({file.parent.name for file in everywhere})
    labelled = not metadata and len(classes) > 1
    if labelled:
        columns["label"] = [classes.index(file.parent.name) for file in files]
    dataset = Dataset.from_dict(columns).cast_column(column, feature)
    return dataset.cast_column("label", ClassLabel(names=classes)) if labelled else dataset


def _metadata(kind: str, files: Sequence[Path], metadata: Sequence[Path]) -> dict[str, list]:
    """Columns of the metadata, in the order of the files; `None` for a file that they do not name."""
    rows: dict[Path, dict] = {}
    names: dict[str, None] = {}
    for file in metadata:
        dataset = read_rows([file], kind_of(file) or "text")
        key = next((name for name in (*_KEYS, MEDIA[kind]) if name in dataset.column_names), None)
        if key is None:
            found = ", ".join(dataset.column_names) or "none"
            raise ValueError(f"{file} must have a column file_name that names the {kind}s; it has {found}.")
        for row in dataset:
            place = row.pop(key)
            if isinstance(place, str):
                rows[(file.parent / place).resolve()] = row
            names |= dict.fromkeys(row)
    known = [rows.get(file.resolve()) for file in files]
    if not any(each is not None for each in known):
        raise ValueError(f"{metadata[0]} names none of the {len(files)} {kind}s beside it.")
    return {name: [(each or {}).get(name) for each in known] for name in names if name != MEDIA[kind]}
