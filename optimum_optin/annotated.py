"""Whether values that were read from a file are of the types that a dataclass says: its annotations are the schema."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping, Sequence
from typing import Any, Union, get_args, get_origin, get_type_hints

_LONGEST = 10_000  # characters of a text


def check_fields(record: Any, name: str = "") -> None:
    """Raise if a field of a dataclass is not of its annotated type, or of no size that we write.

    Args:
        record: a dataclass; others inside of it are checked, too.
        name: what to call it in an error.

    Raises:
        ValueError: names the first such field, and says what it must be.
    """
    hints = get_type_hints(type(record))
    for field in dataclasses.fields(record):
        _check(getattr(record, field.name), hints[field.name], f"{name}.{field.name}".removeprefix("."))


def _check(value: Any, hint: Any, name: str) -> None:
    if hint is Any:
        return
    kind = get_origin(hint) or hint
    options = get_args(hint) if kind in (Union, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return
    option = next((each for each in options if _is_of(value, get_origin(each) or each)), None)
    if option is None:
        wanted = " or ".join(_said(each) for each in options)
        raise ValueError(f"{name} must be {wanted}, got {value!r:.80}")
    inside = get_args(option)
    if dataclasses.is_dataclass(option):
        check_fields(value, name)
    elif isinstance(value, Mapping):
        for key, each in value.items():
            _check(key, inside[0] if inside else str, f"a name in {name}")
            _check(each, inside[1] if inside else Any, f"{name}[{key!r:.80}]")
    elif not isinstance(value, str) and isinstance(value, Sequence):
        for place, each in enumerate(value):
            _check(each, inside[0] if inside else Any, f"{name}[{place}]")


def _is_of(value: Any, kind: type) -> bool:
    if kind in (int, float):
        numbers = (int, float) if kind is float else int
        whole = not isinstance(value, int) or abs(value) < 2**63
        return isinstance(value, numbers) and not isinstance(value, bool) and whole
    if kind is str:
        return isinstance(value, str) and len(value) <= _LONGEST
    if kind in (list, Sequence):
        return isinstance(value, (list, tuple))
    return isinstance(value, Mapping if kind is dict else kind)


def _said(hint: Any) -> str:
    kind = get_origin(hint) or hint
    if dataclasses.is_dataclass(kind):
        return f"the fields of {kind.__name__}"
    return _WORDS.get(kind, "none")


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: f"a text of at most {_LONGEST:,} characters",
    list: "a list",
    Sequence: "a list",
    dict: "names with values",
    Mapping: "names with values",
}
