"""Calibration data by name: a data set on the Hub, a file, or a folder of files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from ..hub_id import is_hub_id
from .columns import named
from .kinds import IMAGE_SUFFIXES, SOUND_SUFFIXES, SUFFIXES
from .loaders import LOADERS, escaped, local_reader
from .paths import read_parts, read_path

# Suffixes of files that are not read, but are no part of a Hub id either.
_OTHER_SUFFIXES = (
    ".arrow .doc .docx .gz .html .log .md .npy .npz .pdf .pkl .tab .tar .text .xls .xlsx .xml .zip .zst".split()
)

_SOURCES: WeakKeyDictionary[Any, Mapping[str, Any]] = WeakKeyDictionary()
_OPTIONS = ("delimiter", "sep", "streaming")  # taken for files that we read


def read_calibration(
    source: str | os.PathLike,
    config_name: str | None = None,
    *,
    split: str = "train",
    text_columns: Sequence[str] | None = None,
    delimiter: str | None = None,
):
    """Calibration samples from a file, a folder or the Hub.

    A path that exists is that path, whatever characters it has. Text must be UTF-8, or UTF-16 with its mark.

    Args:
        source: a CSV, TSV, JSON, JSONL, Parquet or text file (a sample per line), an image or a sound, a folder of
            such files of one kind, or a Hub id, which may name its configuration (`"nyu-mll/glue:sst2"`). Images and
            sounds may have a `metadata.csv` or the like beside them, and be sorted into folders by class.
        config_name: configuration of the data set on the Hub.
        split: split of the data set, or parts of several, `"train[:10%]+test"`; in a folder, files named like
            `test.csv` or `dev.csv`, or in folders of such names, are no part of train. A single file has no splits.
        text_columns: one or two columns that hold the text; `None` leaves the choice to `OptinPruner.prune`.
        delimiter: between the cells of a local table; `None` finds it.

    Returns:
        A `datasets.Dataset`. Cells of CSV and TSV are strings, `None` where they are empty.

    Raises:
        FileNotFoundError: no such file, folder or data set.
        ValueError: files of a kind that is not read, or that cannot be read (names file and line), or no such columns
            (lists those there are).
        ConnectionError: the Hub does not answer.
    """
    place, config_name = find_source(source, config_name)
    if isinstance(place, Path):
        dataset = _read_path(place, config_name, split, delimiter)
    elif delimiter is not None:
        raise ValueError(f"delimiter={delimiter!r} is for local tables, and {place} is on the Hub.")
    else:
        dataset = _load(place, config_name, split)
    return dataset if text_columns is None else chosen_columns(dataset, text_columns)


def note_source(dataset: Any, source: Mapping[str, Any]) -> None:
    """Note where a data set was drawn from. The note does not go along to data sets that are made of it."""
    _SOURCES[dataset] = source


def source_of(data: Any) -> Mapping[str, Any]:
    """What `note_source` noted of this very object; empty if it noted nothing."""
    try:
        return _SOURCES.get(data, {})
    except TypeError:  # lists and the like, which it was not called for
        return {}


def load_calibration(
    source: str | os.PathLike,
    config_name: str | None,
    split: str,
    text_columns: Sequence[str] | None,
    options: Mapping[str, Any],
):
    """Calibration samples as from `read_calibration`, with options of `datasets.load_dataset`.

    Args:
        source: as there, or the name of a loader of `datasets`, with `data_files` or `data_dir` among the options.
        config_name: as there.
        split: as there.
        text_columns: as there.
        options: for a local file, `delimiter` (or `sep`) and `streaming`, which changes nothing; with a loader's name
            or for a data set on the Hub, any.

    Returns:
        A `datasets.Dataset`, or an `IterableDataset`.

    Raises:
        FileNotFoundError: no such file, folder or data set.
        ValueError: see `read_calibration`; or an option that does not fit.
    """
    if source in LOADERS and {"data_files", "data_dir"} & set(options):
        files = {name: options[name] for name in options if name not in _OPTIONS}
        read = local_reader(str(source), files)
        if read is not None:
            dataset = read_parts(lambda name: read(name, _delimiter(options)), split)
        else:
            dataset = _load(str(source), config_name, split, **{**options, **escaped(files)})
    else:
        place, config_name = find_source(source, config_name)
        if isinstance(place, Path) and (place.is_file() or set(options) <= set(_OPTIONS)):
            _check_options(place, options)
            dataset = _read_path(place, config_name, split, _delimiter(options))
        else:
            dataset = _load(str(place), config_name, split, **options)
    return dataset if text_columns is None else chosen_columns(dataset, text_columns)


def _check_options(file: Path, options: Mapping[str, Any]) -> None:
    unknown = sorted(set(options) - set(_OPTIONS))
    if unknown:
        raise ValueError(
            f"{file} is a local file, which is read without {', '.join(unknown)}: delimiter= and streaming= are taken. "
            "For other options of `datasets`, give a loader's name, such as 'csv', and data_files=."
        )


def _delimiter(options: Mapping[str, Any]) -> str | None:
    return next((options[name] for name in ("delimiter", "sep") if name in options), None)


def find_source(source: str | os.PathLike, config_name: str | None = None) -> tuple[Path | str, str | None]:
    """What a source names: a path that exists or a data set on the Hub, and the configuration.

    Raises:
        FileNotFoundError: it is no path that exists, and can be no data set either.
    """
    is_path, source = not isinstance(source, str), os.fsdecode(source)
    if os.path.exists(source):
        return Path(source), config_name
    if os.path.exists(os.path.expanduser(source)):
        return Path(source).expanduser(), config_name
    name, _, suffix = source.partition(":")
    if suffix and os.path.isdir(name):
        return Path(name), config_name or suffix
    if is_path or _looks_local(source) or not is_hub_id(name):
        raise FileNotFoundError(f"no file or folder {source}{': download it first' if '://' in source else ''}.")
    return name, config_name or suffix or None


def chosen_columns(dataset, columns: Sequence[str]):
    """The data set with one or two columns, called `text` and `text_pair`, and its images and sounds.

    Raises:
        ValueError: no such columns; lists those there are.
    """
    columns = named(columns)
    names = list(dataset.column_names or next(iter(dataset)))  # a stream may not know them
    if not set(columns) <= set(names) and hasattr(dataset, "flatten"):  # `translation.en`
        dataset = dataset.flatten()
        names = dataset.column_names
    missing = [name for name in columns if name not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(names)}.")
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"text_columns must name one column or two, got {', '.join(columns)}.")
    media = [name for name, feature in (dataset.features or {}).items() if type(feature).__name__ in ("Image", "Audio")]
    called = dict(zip(columns, ("text", "text_pair"), strict=False))
    return dataset.select_columns([*columns, *media]).rename_columns(called)


def _read_path(path: Path, config_name: str | None, split: str, delimiter: str | None):
    if path.is_dir() and _describes_itself(path):
        return _load(str(path), config_name, split)
    if config_name not in (None, "default"):
        raise ValueError(
            f"{path} has no configuration {config_name!r}: only data sets on the Hub, and copies of them, have any."
        )
    return read_path(path, split, delimiter)


def _describes_itself(folder: Path) -> bool:
    """Whether this is a copy of a data set of the Hub whose card says which files it is made of."""
    card = folder / "README.md"
    return card.is_file() and bool(re.search(rb"(?m)^(configs|dataset_info):", card.read_bytes()))


def _load(name: str, config_name: str | None, split: str, **options):
    from datasets import load_dataset  # slow to import
    from datasets.exceptions import DatasetGenerationError

    try:
        return load_dataset(name, config_name, split=split, **options)
    except ConnectionError as error:
        raise ConnectionError(
            f"cannot read {name} from the Hub: {error}. Without it, give a file or a folder."
        ) from error
    except DatasetGenerationError as error:  # which says nothing itself
        source = options.get("data_files", name)
        raise ValueError(f"{source} cannot be read: {error.__cause__ or error}.") from error


def _looks_local(source: str) -> bool:
    suffix = Path(source).suffix.lower()
    return (
        source.startswith(("/", ".", "~"))
        or source.endswith("/")
        or "\\" in source
        or suffix in (*SUFFIXES, *IMAGE_SUFFIXES, *SOUND_SUFFIXES, *_OTHER_SUFFIXES)
    )
