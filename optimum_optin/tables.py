"""Tables in text files: the one reader of CSV and of TSV. Every cell is a string, as it stands in the file."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from transformers.utils import logging

from .plain_text import read_text, split_lines
from .processes import is_main

logger = logging.get_logger(__name__)

DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"  # of a table with one column
# How quotation marks are used, in the order in which it is tried: as RFC 4180 says, escaped, or as any other character.
_STYLES = (
    {"doublequote": True},
    {"doublequote": False, "escapechar": "\\"},
    {"quoting": csv.QUOTE_NONE},
)


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        columns: their names.
        rows: a cell per column each.
    """

    columns: tuple[str, ...]
    rows: list[list[str]]


@dataclass(frozen=True)
class _Parsed:
    """All lines of a file as cells, with the number of each line."""

    rows: list[list[str]]
    lines: list[int]


def read_csv(file: Path, delimiter: str | None = None) -> Table:
    """A CSV file whose first line names the columns; cells may be quoted.

    Args:
        file: the file, as `plain_text.read_text` takes it.
        delimiter: between cells; `None` takes the one of `, ; tab |` that gives rows as many cells as the first line
            has.

    Raises:
        ValueError: another encoding, quotation marks that do not close, or too many rows of another number of cells;
            names file and line.
    """
    text = read_text(file)
    lines = split_lines(text)
    if lines and (hint := re.fullmatch(r'"?sep=(.)"?', lines[0])):  # Excel's
        delimiter, lines = delimiter or hint.group(1), lines[1:]
    if not any(lines):
        return Table((), [])
    candidates = _candidates(lines[0], delimiter)
    best, best_share, problem = None, 0.0, None
    with _long_fields():
        for style in _STYLES:
            for candidate in candidates:
                try:
                    parsed = _parse(lines, candidate, style)
                except csv.Error as error:
                    problem = problem or error
                    continue
                share = _share_whole(parsed)
                if share > best_share:
                    best, best_share = parsed, share
            if best_share == 1:
                break
    if best is None:
        raise ValueError(f"{file} is no CSV file: {problem}. Write quotation marks inside quoted cells twice.")
    return _table(file, best.rows[0], best.rows[1:], best.lines[1:])


def read_tsv(file: Path, columns: Sequence[str] = ()) -> Table:
    """A TSV file in GLUE's form: a line is a row, and quotation marks are characters like others.

    Args:
        file: the file, as `plain_text.read_text` takes it.
        columns: names of the columns, of a file whose first line is a row; rows may then have further cells.

    Raises:
        ValueError: another encoding, or too many rows of another number of cells; names file and line.
    """
    lines = split_lines(read_text(file))
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, 1) if line]
    if not rows:
        return Table(tuple(columns), [])
    if columns:
        rows = [(number, cells[: len(columns)]) for number, cells in rows]
    else:
        (_, columns), *rows = rows
    return _table(file, columns, [cells for _, cells in rows], [number for number, _ in rows])


def _candidates(header: str, delimiter: str | None) -> tuple[str, ...]:
    """Delimiters that may be meant; a header without any is of one column."""
    if delimiter is not None:
        return (delimiter,)
    unquoted = re.sub(r'"(?:[^"\\]|""|\\.)*"', "", header)
    return tuple(each for each in DELIMITERS if each in unquoted) or (_NO_DELIMITER,)


def _parse(lines: list[str], delimiter: str, style: dict) -> _Parsed:
    """Cells of all lines that are not blank; strictly, so that a stray quotation mark swallows nothing."""
    reader = csv.reader((f"{line}\n" for line in lines), delimiter=delimiter, strict=True, **style)
    rows, numbers = [], []
    start = 1
    try:
        for cells in reader:
            if cells:
                rows.append(cells)
                numbers.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {start}: {error}") from None
    return _Parsed(rows, numbers)


def _share_whole(parsed: _Parsed) -> float:
    """Share of rows that have as many cells as the first."""
    return sum(len(cells) == len(parsed.rows[0]) for cells in parsed.rows) / len(parsed.rows)


def _table(file: Path, header: Sequence[str], rows: list[list[str]], numbers: list[int]) -> Table:
    """Names and rows; the few rows with another number of cells are left out.

    Raises:
        ValueError: they are many.
    """
    torn = [number for number, cells in zip(numbers, rows, strict=True) if len(cells) != len(header)]
    found = f"{file}: {len(torn)} of {len(rows)} rows have another number of cells than the {len(header)} columns"
    if len(torn) > max(3, len(rows) // 10):
        raise ValueError(f"{found}, line {torn[0]} the first: quote cells that hold a delimiter.")
    if torn and is_main():  # QQP has a few
        logger.warning(f"{found}, line {torn[0]} the first: they are left out.")
    whole = [cells for cells in rows if len(cells) == len(header)]
    return Table(_names(file, header), whole)


def _names(file: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns; one that has none, such as the index that pandas writes, is called by its place."""
    names = tuple(name.strip() or f"column {place}" for place, name in enumerate(header, 1))
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{file}: the first line must name the columns, and it has {', '.join(twice)} more than once.")
    return names


@contextmanager
def _long_fields() -> Iterator[None]:
    """Cells longer than the 128 KiB that `csv` takes by itself."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
