"""Texts of whatever origin, quoted: for a terminal, for Markdown, for HTML, and as literals of Python.

Names in a report or a config may be a stranger's. None of them may become markup, code, or a command of a terminal.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

_MARKUP = re.compile(r"[\\`*\[\]~]|(?<!\w)_|_(?!\w)")  # an underscore inside of a word is none


def printable(text: str) -> str:
    """A text without control characters: what is neither printed nor a line break or a tab shows as its escape."""
    return "".join(each if each.isprintable() or each in "\n\t" else _escape(each) for each in text)


def markdown(text: str) -> str:
    """A text as it is, on one line of Markdown."""
    return html.escape(_MARKUP.sub(r"\\\g<0>", _one_line(text)), quote=False)


def code_span(name: str) -> str:
    """A name as code in Markdown; one that would end the code, or mark something, as text."""
    fits = name and name.isprintable() and not set(name) & set("`<>")
    return f"`{name}`" if fits else markdown(name)


def in_html(text: str) -> str:
    """A text as it is, on one line of HTML inside of Markdown."""
    return html.escape(_one_line(text))


def literal(value: Any) -> str:
    """A value of JSON's kinds, or a tuple, as Python code that makes it and does nothing else.

    Raises:
        ValueError: it is of another kind.
    """
    if value is None or isinstance(value, (bool, int)):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if value - value == 0 else f'float("{value}")'  # infinite or none
    if isinstance(value, str):
        return '"' + "".join(map(_quoted, value)) + '"'
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{literal(key)}: {literal(each)}" for key, each in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return _bracketed(value)
    raise ValueError(f"a {type(value).__name__} cannot be written as code: {value!r:.80}.")


def _bracketed(values: Sequence[Any]) -> str:
    inside = ", ".join(map(literal, values))
    if isinstance(values, list):
        return f"[{inside}]"
    return f"({inside},)" if len(values) == 1 else f"({inside})"


def _quoted(character: str) -> str:
    if character in '"\\':
        return f"\\{character}"
    # Without `<`, no comment of HTML begins or ends there, which a card is parted by.
    return character if character.isprintable() and character != "<" else _escape(character)


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}" if code < 65536 else f"\\U{code:08x}"


def _one_line(text: str) -> str:
    return printable(" ".join(text.split()))
