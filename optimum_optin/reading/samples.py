"""A draw of samples from whatever holds them in order."""

from __future__ import annotations

import numbers
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

_OPENED = ("Image", "Audio")  # features of `datasets` that open files


def draw(data: Any, num_samples: int, seed: int) -> dict[int, Any]:
    """Draw samples; return them by their row in the data, in the order of the draw.

    Args:
        data: whatever has samples by number, or iterates over them in order: a list, an array, a `datasets.Dataset`, a
            pandas Series or DataFrame, a table of pyarrow or polars, a `deque`, the views of a dict, or a generator,
            from which the first samples are taken; or a dict of columns.
        num_samples: samples to draw at most.
        seed: seed of the draw.

    Raises:
        ValueError: something else, or no samples.
    """
    data = _in_order(data, num_samples)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:num_samples]
    if len(order) == 0:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    return {index: data[index] for index in order.tolist()}


def rows_from(data: Any, seed: int) -> Iterator[tuple[int, Any]]:
    """All samples with their rows, in their order: from a drawn one on to the last, then from the first on.

    Args:
        data: see `draw`, but with a length.
        seed: seed of the draw.

    Raises:
        ValueError: see `draw`.
    """
    data = _in_order(data, 0)
    count = len(data)
    if count == 0:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    first = int(torch.randint(count, (), generator=torch.Generator().manual_seed(seed)))
    for row in (*range(first, count), *range(first)):
        yield row, data[row]


def is_stream(data: Any) -> bool:
    """Whether the data can only be read from their first sample on, and perhaps only once."""
    return isinstance(data, Iterable) and (not hasattr(data, "__len__") or isinstance(data, IterableDataset))


def is_missing(value: Any) -> bool:
    """Whether a value stands for nothing: `None`, NaN, or one of pandas' own for it."""
    is_nan = isinstance(value, (float, np.floating)) and bool(np.isnan(value))
    return value is None or is_nan or type(value).__name__ in ("NAType", "NaTType")


def undecoded(data: Any) -> Any:
    """A `datasets.Dataset`, or a column of one, with images and sounds not yet opened: we open them, as we can name a
    file that cannot be. Other data, and a data set with the user's own transform, are returned as they are.
    """
    if type(data).__name__ == "IterableDataset" and hasattr(data, "with_format"):  # it does not tell its format
        data = data.with_format(None)
    features = getattr(data, "features", None) or {}
    if type(features).__name__ in _OPENED and hasattr(data, "source"):  # a column: `dataset["image"]`
        return undecoded(data.source)[data.column_name]
    if not isinstance(features, Mapping):
        return data
    kind = (getattr(data, "format", None) or {}).get("type") if features else None
    if kind == "custom":  # the transform decides what an image is
        return data
    if kind in ("pandas", "polars", "arrow"):  # their rows are tables
        data = data.with_format(None).select_columns(data.format["columns"])
    for name, feature in features.items():
        if type(feature).__name__ in _OPENED:
            data = data.with_format(None).cast_column(name, type(feature)(decode=False))
    return data


def _in_order(data: Any, num_samples: int) -> Any:
    """The data as something that has a length, and samples by their place."""
    if isinstance(data, Mapping):
        return _of_columns(data)
    data = undecoded(data)
    if isinstance(data, (str, bytes)):
        raise ValueError(
            "calibration data must be a sequence of samples, got a single string: pass one split, or a list. To read "
            "a path or a data set on the Hub, call get_calibration_dataset."
        )
    if isinstance(data, (set, frozenset)):
        raise ValueError("calibration data must be in some order, which a set is not: pass a list of it.")
    for rows in ("to_pylist", "to_dicts"):  # pyarrow, and a DataFrame of polars
        if hasattr(data, rows):
            return getattr(data, rows)()
    if hasattr(data, "iterrows"):  # a DataFrame of pandas
        return data.to_dict("records")
    if isinstance(data, np.ndarray) and data.dtype.names:  # of records
        return [dict(zip(data.dtype.names, row, strict=True)) for row in data.tolist()]
    single = isinstance(data, (np.ndarray, Tensor)) and data.ndim == 0
    if single or (not hasattr(data, "__getitem__") and not isinstance(data, Iterable)):
        raise ValueError(
            f"calibration data must be a Dataset, a list or a DataLoader, got {type(data).__name__}: "
            "pass calibration data, or scores=."
        )
    if not hasattr(data, "__len__") or isinstance(data, IterableDataset):
        return list(islice(data, num_samples))
    return data if _has_places(data) else list(data)


def _has_places(data: Any) -> bool:
    """Whether `data[place]` is the sample of that place; a pandas Series, for one, takes labels."""
    if isinstance(data, (Sequence, np.ndarray, Tensor, Dataset)):
        return True
    hub = sys.modules.get("datasets")  # slow to import; without it, there is no data of it
    if hub is not None and isinstance(data, hub.Dataset):
        return True
    return hasattr(data, "__getitem__") and not hasattr(type(data), "__iter__")


def _of_columns(data: Mapping[str, Any]) -> Sequence[Any]:
    """The samples of a dict of columns: the output of a tokenizer or an image processor, or names with lists."""
    if "pixel_values" in data and "input_ids" not in data:  # from an image processor
        return data["pixel_values"]
    columns = {name: _column(values) for name, values in data.items()}
    if "input_ids" in data and len(columns["input_ids"]) and _is_number(columns["input_ids"][0]):
        return [data]  # one sample
    lengths = {len(values) for values in columns.values() if hasattr(values, "__len__")}
    sized = all(isinstance(values, (Sequence, np.ndarray, Tensor)) for values in columns.values())
    if not columns or not sized or len(lengths) != 1 or _is_splits(data):
        raise ValueError(
            "calibration data must be a sequence of samples, got a dict of splits: pass one split, or a list. A dict "
            "of columns must hold lists of one length."
        )
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _column(values: Any) -> Any:
    if isinstance(values, (str, Sequence, np.ndarray, Tensor, Mapping)) or not isinstance(values, Iterable):
        return values
    return values.to_pylist() if hasattr(values, "to_pylist") else list(values)


def _is_splits(data: Mapping[str, Any]) -> bool:
    """Whether a dict holds data sets, or strings, rather than columns."""
    return any(isinstance(values, (str, bytes)) or hasattr(values, "column_names") for values in data.values())


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Integral) or (isinstance(value, (np.ndarray, Tensor)) and value.ndim == 0)
