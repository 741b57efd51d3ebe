"""Command-line options made from a function's signature, types and docstring, so that help text exists once."""

from __future__ import annotations

import argparse
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_TYPES = (bool, int, float, str)


def add_options(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup, documented: Callable, names: Sequence[str]
) -> None:
    """Add an option for each named parameter; an option that the user does not give stays out of the result.

    Args:
        parser: gets `--min-heads` for `min_heads`, and so on.
        documented: function or class; defaults, types and help come from its signature, annotations and docstring.
        names: which parameters.
    """
    texts, parameters = argument_texts(documented), inspect.signature(documented).parameters
    types = typing.get_type_hints(documented.__init__ if inspect.isclass(documented) else documented)
    for name in names:
        default = parameters[name].default
        shown = default is not False and isinstance(default, _TYPES)
        text = f"{texts[name]} Default: {default}." if shown else texts[name]
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, default=argparse.SUPPRESS, help=text.replace("%", "%%"), **_reader(types[name]))


def given(arguments: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """The options among `names` that the user gave."""
    return {name: value for name, value in vars(arguments).items() if name in names}


def argument_texts(documented: Callable) -> dict[str, str]:
    """Parameter -> its text in the `Args:` section of the docstring, as a sentence."""
    lines = inspect.getdoc(documented).split("\nArgs:\n")[1].split("\n\n")[0].splitlines()
    texts: dict[str, str] = {}
    for line in lines:
        start = re.match(r"    \**(\w+): (.*)", line)
        if start:
            name, text = start.groups()
            texts[name] = text
        else:
            texts[name] += " " + line.strip()
    return {name: text.replace("`", "").removesuffix(".") + "." for name, text in texts.items()}


def word_or_numbers(text: str) -> str | list[int]:
    """Numbers like `"4,2,0"` as a list; any other text as it is."""
    return [int(number) for number in text.split(",")] if re.fullmatch(r"\d+(,\d+)*", text) else text


def word_or_number(text: str) -> str | int | float:
    """A number like `"4"` or `"0.5"` as one; any other text, such as `"50M"`, as it is."""
    if re.fullmatch(r"\d+", text):
        return int(text)
    return float(text) if re.fullmatch(r"\d*\.\d+|\d+\.", text) else text


def budget_word(text: str) -> str | float | dict[str, str | float]:
    """A budget of a sweep: `"0.5"` as a number, `"params=50M,flops=0.7"` as a dict, and `"50M"` as it is.

    Raises:
        ArgumentTypeError: it has another form, or a name twice.
    """
    if "=" not in text:
        return word_or_number(text)
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    if not all(name and value for name, value in pairs) or len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} must be budgets by name such as params=50M,flops=0.7.")
    return {name: word_or_number(value) for name, value in pairs}


def numbers_by_name(text: str) -> dict[str, int]:
    """`"heads=1,channels=8"` as a dict.

    Raises:
        ArgumentTypeError: the text has another form, or a name twice.
    """
    pairs = [part.partition("=")[::2] for part in text.split(",")]
    if not all(name and re.fullmatch(r"\d+", number) for name, number in pairs) or len(dict(pairs)) < len(pairs):
        raise argparse.ArgumentTypeError(f"{text!r} must be names and whole numbers such as heads=1,channels=8.")
    return {name: int(number) for name, number in pairs}


def units_by_name(text: str) -> dict[str, list[int]]:
    """`"layers.3.heads=0,5"` as a dict.

    Raises:
        ArgumentTypeError: it has another form.
    """
    name, _, numbers = text.partition("=")
    if not name or not re.fullmatch(r"\d+(,\d+)*", numbers):
        raise argparse.ArgumentTypeError(f"{text!r} must be a group and its units such as layers.3.heads=0,5.")
    return {name: [int(number) for number in numbers.split(",")]}


class _Joined(argparse.Action):
    """The dicts of an option's words as one."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, *_: Any) -> None:
        joined = dict(getattr(namespace, self.dest, {}))
        for name, units in (pair for value in values for pair in value.items()):
            if name in joined:
                raise argparse.ArgumentError(self, f"{name} is there twice: give all its units at once.")
            joined[name] = units
        setattr(namespace, self.dest, joined)


def _reader(annotation: Any) -> dict[str, Any]:
    """How `add_argument` reads an option of a type; for `int | None` and the like, the first plain type in it."""
    named = typing.get_args(annotation) or (annotation,)
    if annotation == Mapping[str, Sequence[int]]:
        return {"type": units_by_name, "nargs": "+", "action": _Joined, "metavar": "STR=INT,..."}
    if annotation == Mapping[str, int]:
        return {"type": numbers_by_name, "metavar": "STR=INT,..."}
    if Sequence[str] in (annotation, *named):
        return {"type": str, "nargs": "+", "action": "extend", "metavar": "STR"}
    if Sequence[int] in named:
        several = {"type": int, "nargs": "+", "metavar": "INT"}
        return several if str not in named else {"type": word_or_numbers, "metavar": "STR|INT,INT,..."}
    if str in named and (number := {int, float} & {*named}):
        return {"type": word_or_number, "metavar": f"STR|{number.pop().__name__.upper()}"}
    kind = next(kind for kind in _TYPES if kind in named)
    return {"action": "store_true"} if kind is bool else {"type": kind, "metavar": kind.__name__.upper()}
