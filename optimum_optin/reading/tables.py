"""Tables in text files: the one reader of CSV and of TSV. Every cell is a string, as it stands in the file."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from transformers.utils import logging

from ..running.processes import is_main
from .columns import is_other
from .plain_text import read_text, split_lines

logger = logging.get_logger(__name__)

DELIMITERS = (",", ";", "\t", "|")
_NO_DELIMITER = "\x1f"  # for a table with one column
# Quotation marks inside a quoted cell stand twice (RFC 4180) or behind a backslash; or they are like other characters.
_DOUBLED = {"doublequote": True}
_ESCAPED = {"doublequote": False, "escapechar": "\\"}
_UNQUOTED = {"quoting": csv.QUOTE_NONE}
_QUOTING = (
    "the first line names the columns; quote cells that hold a delimiter, and write quotation marks inside them twice"
)
_TABS = "a line is a row, and the first one names the columns"
_QUOTED = re.compile(r'"(?:[^"\\]|""|\\.)*"', re.DOTALL)  # a whole cell
_MOST_BROKEN = 1000  # lines whose quotation marks do not close; each may be looked for until the end of the file


@dataclass(frozen=True)
class Table:
    """A table.

    Args:
        columns: their names.
        rows: each has one cell for every column.
    """

    columns: tuple[str, ...]
    rows: list[list[str]]


@dataclass(frozen=True)
class _Parsed:
    """A file as cells.

    Args:
        header: the first row.
        rows: the others.
        lines: number of the line in which each of them begins.
    """

    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    @property
    def share(self) -> float:
        """Share of rows that have as many cells as the header."""
        return sum(len(cells) == len(self.header) for cells in self.rows) / max(1, len(self.rows))


def read_csv(file: Path, delimiter: str | None = None) -> Table:
    """A CSV file whose first line names the columns; cells may be quoted.

    Args:
        file: the file, as `plain_text.read_text` takes it.
        delimiter: between cells; `None` takes the one of `, ; tab |` that gives rows as many cells as the first line
            has.

    Raises:
        ValueError: another encoding, or too many rows of another number of cells, or with quotation marks that do not
            close; names file and line.
    """
    lines, styles = _read(file)
    if lines and (hint := re.fullmatch(r'"?sep=(.)"?', lines[0])):  # Excel's
        delimiter, lines = delimiter or hint.group(1), lines[1:]
    header = next((line for line in lines if line), None)
    if header is None:
        return Table((), [])
    best = None
    with _long_fields():
        for style in (*styles, _UNQUOTED):
            for candidate in _candidates(header, delimiter):
                parsed = _parse(lines, candidate, style)
                if style is _UNQUOTED and _is_quoted(parsed):
                    continue
                if best is None or parsed.share > best.share:
                    best = parsed
            if best.share == 1:
                break
    if delimiter is None and len(best.header) == 1:
        _check_single(file, best)
        _check_first(file, best)
    return _table(file, best.header, best.rows, best.lines, _QUOTING)


def read_tsv(file: Path, columns: Sequence[str] = ()) -> Table:
    """A TSV file in one of two forms: GLUE's, in which a line is a row and quotation marks are characters like others,
    or that of pandas, in which cells are quoted as in CSV. The content tells which; where both fit, it is GLUE's.

    Args:
        file: the file, as `plain_text.read_text` takes it.
        columns: names of the columns, for a file in GLUE's form whose first line is a row already; rows may then have
            further cells.

    Raises:
        ValueError: another encoding, or too many rows of another number of cells; names file and line.
    """
    lines, styles = _read(file)
    rows = [(number, line.split("\t")) for number, line in enumerate(lines, 1) if line]
    if not rows:
        return Table(tuple(columns), [])
    numbers, cells = map(list, zip(*rows, strict=True))
    if columns:
        return _table(file, columns, [row[: len(columns)] for row in cells], numbers, _TABS)
    if len(cells[0]) == 1 and (set(DELIMITERS) & set(cells[0][0]) or max(map(len, cells)) == 1):
        return read_csv(file)  # of another delimiter, or of one column
    parsed = _Parsed(cells[0], cells[1:], numbers[1:])
    begun = any(cell.startswith('"') for row in cells for cell in row)
    with _long_fields():
        for style in styles if begun else ():
            quoted = _parse(lines, "\t", style, most_broken=0)
            if _is_of_pandas(parsed, quoted):
                return _table(file, quoted.header, quoted.rows, quoted.lines, _QUOTING)
    return _table(file, parsed.header, parsed.rows, parsed.lines, _TABS)


def _candidates(header: str, delimiter: str | None) -> tuple[str, ...]:
    """Delimiters that may be meant; a header without any is of one column."""
    if delimiter is not None:
        return (delimiter,)
    unquoted = _QUOTED.sub("", header)
    return tuple(each for each in DELIMITERS if each in unquoted) or (_NO_DELIMITER,)


def _read(file: Path) -> tuple[list[str], list[dict]]:
    """The lines of a file, and how quotation marks in it may be meant."""
    text = read_text(file)
    return split_lines(text), [_DOUBLED, _ESCAPED] if '\\"' in text else [_DOUBLED]


def _parse(lines: list[str], delimiter: str, style: dict, most_broken: int = _MOST_BROKEN) -> _Parsed:
    """Cells of all lines that are not blank.

    A line whose quotation marks are not closed, or closed in the middle of a cell, has no cells, so that it swallows
    none of those that follow. After `most_broken` of them, the rest is not looked at.
    """
    header = next(filter(None, lines), "")
    spaced = delimiter in header and header.count(delimiter) == header.count(f"{delimiter} ")
    rows, numbers, start, broken = [], [], 0, 0
    while start < len(lines) and broken <= most_broken:
        rest = (f"{line}\n" for line in islice(lines, start, None))
        reader = csv.reader(rest, delimiter=delimiter, skipinitialspace=spaced, strict=True, **style)
        first = start
        try:
            for cells in reader:
                if cells:
                    rows.append(cells)
                    numbers.append(start + 1)
                start = first + reader.line_num
        except csv.Error:
            rows.append([])
            numbers.append(start + 1)
            start, broken = start + 1, broken + 1
    rows += [[] for _ in lines[start:]]
    numbers += range(start + 1, len(lines) + 1)
    return _Parsed(rows[0] if rows else [], rows[1:], numbers[1:])


def _is_quoted(parsed: _Parsed) -> bool:
    """Whether most of the cells that begin with a quotation mark also end with one, which is there for quoting then."""
    begun = [cell for cells in parsed.rows for cell in cells if cell.startswith('"')]
    return sum(len(cell) > 1 and cell.endswith('"') for cell in begun) * 2 > len(begun)


def _is_of_pandas(plain: _Parsed, quoted: _Parsed) -> bool:
    """Whether the quotation marks of a TSV file are there for quoting, as pandas writes them.

    They are if no row is torn when they are read so, and some are otherwise. If none is torn either way, every cell
    that begins with a mark must be a quoted cell, and there must be another sign, as GLUE's texts may be in quotation
    marks, too.
    """
    if quoted.share < 1 or plain.share < 1:
        return quoted.share == 1
    begun = [cell for cells in (plain.header, *plain.rows) for cell in cells if cell.startswith('"')]
    signs = any('""' in cell[1:-1] or '\\"' in cell for cell in begun) or any(cell in begun for cell in plain.header)
    return signs and all(map(_QUOTED.fullmatch, begun))


def _check_single(file: Path, parsed: _Parsed) -> None:
    """Raise if a table of one column looks like one of several, with a delimiter that is not looked for.

    Raises:
        ValueError: every row has as many of some sign as the header.
    """
    header = parsed.header[0]
    for sign in sorted({sign for sign in header if not (sign.isalnum() or sign.isspace() or sign in "_'\"-.?!()")}):
        if parsed.rows and all(cells and cells[0].count(sign) == header.count(sign) for cells in parsed.rows):
            raise ValueError(
                f"{file}: its cells seem to be set apart by {sign!r}, which is not looked for: use one of "
                f"{' '.join(map(repr, DELIMITERS))}, or give delimiter= of get_calibration_dataset."
            )


def _check_first(file: Path, parsed: _Parsed) -> None:
    """Raise if a table of one column looks like one of several below a line, such as a title, that is none of it.

    Raises:
        ValueError: the second line is words with a delimiter between them, which every row has as often.
    """
    names = parsed.rows[0][0] if parsed.rows and parsed.rows[0] else ""
    for sign in DELIMITERS:
        words = names.split(sign)
        if len(words) > 1 and all(map(str.isidentifier, words)):
            below = _parse([each for row in parsed.rows for each in row], sign, _DOUBLED)
            if below.share == 1:
                raise ValueError(
                    f"{file}: the first line must name the columns, and it is {parsed.header[0]!r:.80}; those seem to "
                    f"be in line {parsed.lines[0]}. Remove what stands before it."
                )


def _table(file: Path, header: Sequence[str], rows: list[list[str]], numbers: list[int], remedy: str) -> Table:
    """Names and rows; the few rows with another number of cells are left out.

    Raises:
        ValueError: they are many.
    """
    torn = [number for number, cells in zip(numbers, rows, strict=True) if len(cells) != len(header)]
    found = f"{file}: {len(torn)} of {len(rows)} rows do not have one cell for each of the {len(header)} columns"
    if len(torn) > max(3, len(rows) // 10):
        raise ValueError(f"{found}, line {torn[0]} the first: {remedy}.")
    if torn and is_main():  # QQP has a few
        logger.warning(f"{found}, line {torn[0]} the first: they are left out.")
    whole = [cells for cells in rows if len(cells) == len(header)]
    return Table(_names(file, header), whole)


def _names(file: Path, header: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns; one that has none, such as the index that pandas writes, is called by its place."""
    names = [name.strip() or f"column {place}" for place, name in enumerate(header, 1)]
    twice = sorted({name for name in names if names.count(name) > 1 and not is_other(name)})
    if twice:
        raise ValueError(f"{file}: the first line must name the columns, and it has {', '.join(twice)} more than once.")
    # As in two tables that were joined: which one a label or an id comes from does not matter here.
    return tuple(
        f"column {place} {name}" if name in names[: place - 1] else name for place, name in enumerate(names, 1)
    )


@contextmanager
def _long_fields() -> Iterator[None]:
    """Let `csv` take cells longer than its 128 KiB; undone on exit."""
    before = csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    try:
        yield
    finally:
        csv.field_size_limit(before)
