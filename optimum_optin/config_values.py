"""Values of a configuration: checked when they are given, and frozen from then on."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any


class Frozen(dict):
    """A mapping that nobody can change unchecked, so that a configuration stays frozen and hashable."""

    def __hash__(self) -> int:
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple:
        return Frozen, (dict(self),)

    def _refuse(self, *_: Any, **__: Any) -> None:
        raise TypeError("a configuration cannot be changed: make another by dataclasses.replace(config, ...).")

    __setitem__ = __delitem__ = __ior__ = clear = pop = popitem = setdefault = update = _refuse


def numbers_by_name(field: str, value: Any, what: str, least: int) -> Frozen:
    """A mapping from names to whole numbers.

    Args:
        field: what the configuration calls it.
        value: what was given.
        what: what it must be, for the error.
        least: the least that a number may be.

    Raises:
        ValueError: it is something else.
    """
    _check_names(field, value, what)
    numbers = Frozen((name, plain(number)) for name, number in value.items())
    for name, number in numbers.items():
        check_integer(f"{field}[{name!r}]", number, least)
    return numbers


def units_by_name(field: str, value: Any) -> Frozen:
    """A mapping from names to units by their index: ascending, each once.

    Raises:
        ValueError: it is something else.
    """
    _check_names(field, value, "units by group, such as {'layers.3.heads': [0, 5]}")
    found = {}
    for name, given in value.items():
        units = plain(given)
        if not isinstance(units, Sequence) or isinstance(units, str):
            raise ValueError(f"{field}[{name!r}]={given!r} must be a list of units by their index, such as [0, 5].")
        indices = [plain(unit) for unit in units]
        for index in indices:
            check_integer(f"{field}[{name!r}]", index, 0)
        found[name] = tuple(sorted(set(indices)))
    return Frozen(found)


def names_in(field: str, value: Any) -> tuple[str, ...]:
    """A list of names.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(_is_name(name) for name in value):
        raise ValueError(
            f"{field}={value!r} must be a list of layers, groups, roles or patterns of them, such as "
            "['layers.0', '*.heads']."
        )
    return tuple(value)


def thawed(value: Any) -> Any:
    """A dict for a frozen mapping, and lists for tuples: what JSON gives back."""
    if isinstance(value, Mapping):
        return {name: thawed(inside) for name, inside in value.items()}
    return list(value) if isinstance(value, tuple) else value


def plain(value: Any) -> Any:
    """Python's numbers for those of NumPy and PyTorch."""
    return value.tolist() if hasattr(value, "tolist") else value


def is_number(value: object) -> bool:
    """Whether it is a finite number that a float can hold, and no truth value."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def check_integer(name: str, value: object, least: int) -> None:
    """Raise if a value is no whole number, or a smaller one.

    Raises:
        ValueError: names it.
    """
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 2**63:
        raise ValueError(f"{name}={value!r} must be a whole number of at least {least}.")


def _check_names(field: str, value: Any, what: str) -> None:
    if not isinstance(value, Mapping) or not all(_is_name(name) for name in value):
        raise ValueError(f"{field}={value!r} must be {what}.")


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name != ""


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise if an argument that was given is of another type.

    Raises:
        TypeError: names it.
    """
    if value is not None and not isinstance(value, kind):
        raise TypeError(f"{name} must be {kind.__name__}, got {value!r:.80}.")
