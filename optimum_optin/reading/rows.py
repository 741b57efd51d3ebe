"""Rows of local files, all of one kind, as a `datasets.Dataset`. Paths are taken literally: no patterns, no cache."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from ..running.processes import is_main
from .plain_text import read_text, split_lines, without_surrogates
from .tables import Table, read_csv, read_tsv

logger = logging.get_logger(__name__)

Columns = dict[str, list]


def read_rows(files: Sequence[Path], kind: str, delimiter: str | None = None):
    """The rows of files, one file after the other.

    In CSV and TSV every cell is a string, `None` where it is empty. In a text file every line is a row, but for blank
    ones. JSON is a list of objects or of strings, an object that holds one such list, an object of columns or of rows
    by their ids, or an object in each line.

    Args:
        files: the files.
        kind: as `kinds.kind_of` tells it; not images.
        delimiter: between the cells of a table; `None` finds it.

    Raises:
        ValueError: a file that cannot be read, or files of different columns; names file and, where it is known, line.
    """
    if kind == "parquet":
        return _joined([_parquet(file) for file in files], files)
    if delimiter is not None and (kind, delimiter) != ("tsv", "\t"):
        parts = [_cells(read_csv(file, delimiter)) for file in files]
    else:
        parts = [_READERS[kind](file) for file in files]
    _check_alike([list(part) for part in parts], files)
    columns = {name: [value for part in parts for value in part[name]] for name in parts[0]}
    if not any(columns.values()):
        raise ValueError(f"{', '.join(map(str, files[:3]))}: there are no rows.")
    return _dataset(columns, str(files[0]) if len(files) == 1 else f"{files[0]} and {len(files) - 1} more")


def _cells(table: Table) -> Columns:
    return {name: [row[place] or None for row in table.rows] for place, name in enumerate(table.columns)}


def _lines(file: Path) -> Columns:
    lines = [line for line in split_lines(read_text(file)) if line.strip()]
    for sign in "\t;":
        if all(sign in line for line in lines) and _has_labels([line.split(sign) for line in lines]):
            _say(
                f"{file}: every line has a {sign!r} with few different values beside it, which become text, too. If "
                "they are labels, call the file .csv, with a first line that names the columns."
            )
    return {"text": lines}


def _has_labels(rows: Sequence[Sequence[str]]) -> bool:
    """Whether these are rows of a table whose first or last column has few different values."""
    if len({len(row) for row in rows}) != 1 or len(rows[0]) == 1:
        return False
    return any(len({row[place] for row in rows}) * 4 <= len(rows) for place in (0, -1))


def _json(file: Path) -> Columns:
    text = read_text(file)
    if not text.strip():
        return {}
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        first = text.lstrip().partition("\n")[0].strip()
        if first.startswith(("{", '"', "[")) and first.endswith(("}", '"', "]")) and _is_json(first):
            return _of_list(list(_json_lines(text, file)), file)
        raise ValueError(f"{file} is no JSON: line {error.lineno}, column {error.colno}: {error.msg}.") from None
    except RecursionError:
        raise ValueError(f"{file} is no JSON that can be read: it is nested too deep.") from None
    if isinstance(content, Mapping) and file.suffix.lower() == ".json":  # of other suffixes, an object is a row
        return _of_object(content, file)
    if isinstance(content, Mapping):
        return _of_list([content], file)
    return _of_list(content, file)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True


def _json_lines(text: str, file: Path) -> Iterable[Any]:
    for number, line in enumerate(split_lines(text), 1):
        if line.strip():
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{file} is no JSON: line {number}, column {error.colno}: {error.msg}.") from None


def _of_object(content: Mapping[str, Any], file: Path) -> Columns:
    """The rows that an object stands for: its only list of rows, rows by their ids, its columns, or itself."""
    lists = [name for name, value in content.items() if isinstance(value, list)]
    rows = [name for name in lists if content[name] and all(isinstance(each, Mapping) for each in content[name])]
    if len(rows) > 1 and len(rows) == len(lists):
        raise ValueError(f"{file} holds several lists of rows, {', '.join(rows)}: save the one that is meant.")
    if len(rows) == 1 and (len(lists) == 1 or not _even(content, lists)):
        return _of_list(content[rows[0]], file)
    if lists and len(lists) == len(content) and _even(content, lists):
        return {name: list(content[name]) for name in lists}
    values = list(content.values())
    if values and all(isinstance(value, Mapping) for value in values):
        if len(values) > max(map(len, values)):  # rows by their ids
            return _of_list(values, file)
        if all(value.keys() == values[0].keys() for value in values):  # columns, as pandas writes a DataFrame
            return {name: list(value.values()) for name, value in content.items()}
    return _of_list([content], file)


def _even(content: Mapping[str, Any], lists: Sequence[str]) -> bool:
    return len({len(content[name]) for name in lists}) == 1


def _of_list(rows: Any, file: Path) -> Columns:
    if isinstance(rows, list) and rows and all(isinstance(row, str) for row in rows):
        return {"text": rows}
    if not isinstance(rows, list) or not all(isinstance(row, Mapping) for row in rows):
        odd = next((row for row in rows if not isinstance(row, Mapping)), rows) if isinstance(rows, list) else rows
        raise ValueError(f"{file} must hold a list of objects or of strings, got {odd!r:.80}.")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


_READERS: dict[str, Callable[[Path], Columns]] = {
    "csv": lambda file: _cells(read_csv(file)),
    "tsv": lambda file: _cells(read_tsv(file)),
    "json": _json,
    "text": _lines,
}


def _parquet(file: Path):
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import Dataset  # slow to import
    from datasets.table import InMemoryTable

    try:
        with file.open("rb") as opened:
            table = pq.ParquetFile(opened).read()
        for place, field in enumerate(table.schema):
            if pa.types.is_dictionary(field.type):  # categories, which `datasets` does not know
                plain = table.column(place).cast(field.type.value_type)
                table = table.set_column(place, field.with_type(field.type.value_type), plain)
        return Dataset(InMemoryTable(table))
    except (pa.ArrowException, NotImplementedError, OSError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no Parquet file that can be read: {error}.") from error


def _dataset(columns: Columns, source: str):
    """The columns as a `datasets.Dataset`. Arrow takes columns of one type: in a column with strings, all else counts
    as missing; other columns of mixed types are left out.
    """
    from datasets import Dataset  # slow to import

    kept: dict[str, Any] = {}
    for name, values in columns.items():
        whole = [without_surrogates(value) if isinstance(value, str) else value for value in values]
        try:
            kept[name] = Dataset.from_dict({name: whole})
        except Exception as error:  # Arrow's and Python's own, of all kinds
            strings = [value if isinstance(value, str) else None for value in whole]
            odd = next((row for row, value in enumerate(whole) if not isinstance(value, (str, type(None)))), None)
            if any(strings):
                _say(f"{source}: in column {name}, what is no string counts as missing, row {odd} the first.")
                kept[name] = Dataset.from_dict({name: strings})
            else:
                _say(f"{source}: column {name} is left out, as its values are of different kinds ({error}).")
    if not kept:
        return Dataset.from_dict({})
    return _side_by_side(list(kept.values()))


def _side_by_side(parts: list):
    from datasets import concatenate_datasets  # slow to import

    return parts[0] if len(parts) == 1 else concatenate_datasets(parts, axis=1)


def _joined(parts: list, files: Sequence[Path]):
    from datasets import concatenate_datasets  # slow to import

    if len(parts) == 1:
        return parts[0]
    _check_alike([part.column_names for part in parts], files)
    try:
        return concatenate_datasets(parts)
    except Exception as error:  # whatever `datasets` makes of features that differ
        raise ValueError(f"the columns of {files[0]} and the files beside it differ in type: {error}.") from error


def _check_alike(columns: Sequence[Sequence[str]], files: Sequence[Path]) -> None:
    for names, file in zip(columns, files, strict=True):
        if set(names) != set(columns[0]):
            raise ValueError(
                f"files of one folder must have the same columns: {files[0]} has {', '.join(columns[0]) or 'none'}, "
                f"{file} has {', '.join(names) or 'none'}. Give one file."
            )


def _say(message: str) -> None:
    if is_main():
        logger.warning(message)
