"""Calibration texts: from samples of whatever form to one string, or a pair of strings, for each."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence
from statistics import mode
from typing import Any

import numpy as np
from transformers.utils import logging

from ..media.images import is_image
from ..reading.columns import is_known, looks_like_text, named, text_columns
from ..reading.samples import is_missing
from ..reading.sound_files import is_sound
from ..running.processes import is_main

logger = logging.get_logger(__name__)

Text = tuple[str, ...]
"""One string, or a pair."""


def read_texts(
    samples: Mapping[int, Any],
    chosen: Sequence[str | int] | None = None,
    unreadable: str = "skip",
    tell: Callable[..., tuple[str, ...]] = text_columns,
) -> dict[int, Text]:
    """The texts of the samples that have any, all single or all pairs.

    Args:
        samples: row in the user's data -> string, dict, or tuple or list, whose places then count as columns. All
            samples are alike.
        chosen: one or two columns (or places) that hold the text; `None` takes the columns of known names, else the
            only one that looks like text, and says so.
        unreadable: `"skip"` leaves out samples whose text is missing or empty, with a warning that names them; `"stop"`
            raises. If all are empty strings, they are taken as they are.
        tell: tells the columns that hold the text, if none are chosen; see `text_columns`.

    Raises:
        ValueError: samples of another form, text columns that cannot be told, or no text at all.
    """
    return _readable(parts_of(samples, chosen, tell), unreadable)


def parts_of(
    samples: Mapping[int, Any],
    chosen: Sequence[str | int] | None = None,
    tell: Callable[..., tuple[str, ...]] = text_columns,
) -> dict[int, Sequence]:
    """What the samples have where their texts should be, all single or all pairs; see `problem_of`.

    Args:
        samples: as for `read_texts`, as are the others.

    Raises:
        ValueError: samples of another form, or text columns that cannot be told.
    """
    first = _values(next(iter(samples.values())))
    if not any(isinstance(part, str) for part in first):
        held = "sounds" if any(map(is_sound, first)) else "images" if any(map(is_image, first)) else None
        if held is not None:
            raise ValueError(f"the data hold {held}, but this is a model of text: give text.")
    kinds = {row: _kind(sample) for row, sample in samples.items() if isinstance(sample, str) or is_composed(sample)}
    most = mode(kinds.values()) if kinds else None
    odd = [row for row in samples if kinds.get(row, most) != most] if kinds else list(samples)
    if odd:
        raise ValueError(
            "a sample must be a string, a pair of strings or a dict, all alike, got "
            f"{samples[odd[0]]!r:.120} in row {odd[0]}: drop or mend such samples."
        )
    if most is str:
        if chosen is not None:
            raise ValueError(f"text_columns={named(chosen)!r} is for samples with columns, and these are strings.")
        return {row: (sample,) for row, sample in samples.items()}
    rows = [columns_of(samples[row]) for row in kinds]
    names = _chosen(rows, chosen) if chosen is not None else _told(rows, tell, placed=most is not dict)
    return {
        row: tuple(columns_of(sample).get(name) for name in names) if is_composed(sample) else (None,)
        for row, sample in samples.items()
    }


def is_composed(sample: Any) -> bool:
    """Whether a sample has columns, or places."""
    placed = isinstance(sample, (tuple, list)) or (isinstance(sample, np.ndarray) and sample.ndim == 1)
    return placed or _is_named(sample)


def _is_named(sample: Any) -> bool:
    """Whether a sample has columns: a dict, a row of pandas or of a database, a named tuple."""
    return any(hasattr(sample, name) for name in ("keys", "_asdict"))


def columns_of(sample: Any) -> dict[Any, Any]:
    """Column -> value of a sample; place -> value if it is a tuple or a list."""
    if hasattr(sample, "_asdict"):
        return sample._asdict()
    return dict(sample) if _is_named(sample) else dict(enumerate(sample))


def flat(sample: Any) -> Any:
    """A sample with the columns of columns by names like `translation.en`."""
    if not isinstance(sample, Mapping) or not any(isinstance(value, Mapping) for value in sample.values()):
        return sample
    found: dict[Any, Any] = {}
    for name, value in sample.items():
        found |= (
            {f"{name}.{inner}": each for inner, each in value.items()} if isinstance(value, Mapping) else {name: value}
        )
    return found


def _values(sample: Any) -> list:
    return list(columns_of(sample).values()) if is_composed(sample) and not isinstance(sample, np.ndarray) else [sample]


def _kind(sample: Any) -> type | int:
    """The form of a sample: `str`, `dict`, or the length of a tuple or list."""
    if isinstance(sample, str):
        return str
    return dict if _is_named(sample) else len(sample)


def _chosen(rows: Sequence[Mapping], chosen: Sequence[str | int]) -> list:
    """The columns that the user named.

    Raises:
        ValueError: no such columns, or more than two.
    """
    wanted = named(chosen)
    names = {str(name): name for row in rows for name in row}
    missing = [str(name) for name in wanted if str(name) not in names]
    if missing:
        raise ValueError(f"no column {', '.join(missing)}; there are {', '.join(names) or 'none'}.")
    if not 1 <= len(wanted) <= 2:
        raise ValueError(f"text_columns must name one column or two, got {', '.join(map(str, wanted))}.")
    return [names[str(name)] for name in wanted]


def _told(rows: Sequence[Mapping], tell: Callable[..., tuple[str, ...]], placed: bool) -> list:
    """The columns that hold the text; a warning names them, unless their names leave no doubt."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    strings = [name for name in columns if any(isinstance(row.get(name), str) for row in rows)]
    if placed:
        names = _told_places(rows, strings)
    else:
        values = {name: [row.get(name) for row in rows] for name in strings}
        names = list(tell(columns, strings, values))
    others = [name for name in columns if name not in names]
    if others and not (not placed and is_known(names)) and is_main():
        what = "place" if placed else "column"
        logger.warning(
            f"texts are those in {what} {' and '.join(map(str, names))}; not used: "
            f"{', '.join(map(str, others))}. text_columns= (--text-columns) chooses others."
        )
    return names


def _told_places(rows: Sequence[Mapping], strings: Sequence[int]) -> list[int]:
    """The places of tuples that hold text: two that look like it are a pair.

    Raises:
        ValueError: none has strings, or none looks like text, or more than two do.
    """
    if not strings:
        raise ValueError(
            "a sample must be a string, a pair of strings or a dict, all alike, got "
            f"{tuple(rows[0].values())!r:.120}: drop or mend such samples."
        )
    others = [value for row in rows for place, value in row.items() if place not in strings]
    if len(strings) == 1 and all(map(_is_single, others)):
        return list(strings)
    # Samples that are repeated as a whole count once: a label is what comes with many different texts.
    different = list(dict.fromkeys(tuple(_string(row[place]) for place in strings) for row in rows))
    likely = [
        place for place, values in zip(strings, zip(*different, strict=True), strict=True) if looks_like_text(values)
    ]
    if not 1 <= len(likely) <= 2:
        raise ValueError(
            f"cannot tell texts from labels in samples such as {tuple(rows[0].values())!r:.120}: give the texts alone, "
            "or name their places with text_columns= ([0] for the first, [0, 1] for pairs)."
        )
    return likely


def _is_single(value: Any) -> bool:
    """Whether this is a number or nothing. Anything more may be the sample, with a string beside it as the label."""
    return isinstance(value, numbers.Number) or getattr(value, "ndim", None) == 0 or is_missing(value)


def _string(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _readable(found: Mapping[int, Sequence], unreadable: str) -> dict[int, Text]:
    """The texts, without those that are missing or empty; a warning names these."""
    problems = {row: problem for row, parts in found.items() if (problem := problem_of(parts))}
    if len(problems) == len(found) and set(problems.values()) == {_EMPTY}:
        if is_main():
            logger.warning("all calibration texts are empty.")
        return {row: tuple(map(str, parts)) for row, parts in found.items()}
    leave_out(problems, len(found), unreadable)
    return {row: tuple(map(str, parts)) for row, parts in found.items() if row not in problems}


def leave_out(problems: Mapping[int, str], count: int, unreadable: str) -> None:
    """Warn of the samples that are left out because they have no text.

    Args:
        problems: row -> what is wrong.
        count: how many samples there are.
        unreadable: `"stop"` raises at the first.

    Raises:
        ValueError: all would be left out, or some and `unreadable` is `"stop"`.
    """
    named = [f"row {row} ({problem})" for row, problem in sorted(problems.items())]
    if named and unreadable == "stop":
        raise ValueError(
            f"a calibration text cannot be read: {named[0]}. Mend or remove it, or take unreadable='skip'."
        )
    if len(named) == count:
        raise ValueError(f"none of the {count} calibration texts can be read; the first: {named[0]}.")
    if named and is_main():
        more = f" and {len(named) - 10} more" if len(named) > 10 else ""
        logger.warning(
            f"left out of the calibration data, as there is no text to read: {', '.join(named[:10])}{more}; "
            f"{count - len(named)} of {count} calibration texts are left."
        )


_EMPTY = "it is empty"


def problem_of(parts: Sequence) -> str | None:
    """What is wrong with a text, or a pair of texts, if anything is."""
    for part in parts:
        if is_missing(part):
            return "there is none"
        if not isinstance(part, str):
            return f"{type(part).__name__}, not text"
    return None if all(part.strip() for part in parts) else _EMPTY
