"""Reasons why parts of a model are left whole, for people to read: like names and like reasons are said once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_NUMBER = re.compile(r"\d+(?:\.\d+)?(?:e[+-]?\d+)?")
_SHOWN = 3  # names of one reason


@dataclass(frozen=True)
class Reason:
    """A reason, and all that it holds for.

    Args:
        names: groups, modules or tensors, in their order.
        text: the reason, as it was given for the first of them.
    """

    names: tuple[str, ...]
    text: str

    @property
    def shown(self) -> tuple[str, ...]:
        """A few of the names: of those that differ in numbers alone, the first."""
        return tuple({alike(name): name for name in reversed(self.names)}.values())[::-1][:_SHOWN]

    @property
    def more(self) -> int:
        """How many names are not shown."""
        return len(self.names) - len(self.shown)

    def __str__(self) -> str:
        more = f" and {self.more} more" if self.more else ""
        return f"{', '.join(self.shown)}{more}: {self.text}"


def reasons_of(left_whole: Mapping[str, str]) -> list[Reason]:
    """Name -> reason as a list of reasons, those that differ in numbers alone as one.

    Args:
        left_whole: see `Groups.left_whole`; a name may list several tensors.
    """
    names: dict[str, list[str]] = {}
    texts: dict[str, str] = {}
    for name, text in left_whole.items():
        names.setdefault(alike(text), []).extend(name.split(", "))
        texts.setdefault(alike(text), text)
    return [Reason(tuple(names[form]), text) for form, text in texts.items()]


def alike(text: str) -> str:
    """What texts have in common that differ in numbers alone."""
    return _NUMBER.sub("#", text)
