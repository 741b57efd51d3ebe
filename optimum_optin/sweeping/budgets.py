"""The budgets of a sweep: what each of them means, by the fields of a configuration, and what it is called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..config import BUDGETS, OptinConfig
from ..config_values import is_number, plain
from ..quantities import Quantity, check_quantity

SweptBudget = Quantity | Mapping[str, Quantity]
"""A share of the FLOPs, a number with a unit, or fields of `OptinConfig` that are budgets."""

DEFAULT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)


@dataclass(frozen=True)
class Budget:
    """One budget of a sweep.

    Args:
        fields: field of the configuration -> the share, or the number with a unit.
        config: the configuration with this budget alone.
    """

    fields: Mapping[str, Quantity]
    config: OptinConfig

    @property
    def name(self) -> str:
        """Its name, which a folder may have, such as `"flops-0.5"`."""
        return "-".join(f"{name}-{value}" for name, value in self.fields.items())


def read_budgets(given: Sequence[SweptBudget], config: OptinConfig) -> list[Budget]:
    """The budgets that were given, each with its configuration.

    Args:
        given: see `SweptBudget`.
        config: all else; its own budgets are not used.

    Raises:
        TypeError: they are no list.
        ValueError: there are none, one is no budget, there twice, or does not go with the configuration.
    """
    if isinstance(given, (str, Mapping)) or not isinstance(given, Sequence):
        raise TypeError(f"budgets must be a list such as [0.9, 0.7, 0.5], got {given!r:.80}.")
    if not given:
        raise ValueError("budgets=[] leaves nothing to prune to: give a list such as [0.9, 0.7, 0.5].")
    found: list[Budget] = []
    for each in given:
        fields = _fields(plain(each))
        if any(other.fields == fields for other in found):
            raise ValueError(f"budgets holds {each!r:.80} twice: give every budget once.")
        found.append(Budget(fields, with_budget(config, fields)))
    return found


def with_budget(config: OptinConfig, fields: Mapping[str, Quantity]) -> OptinConfig:
    """The configuration with these budgets in the place of its own."""
    return replace(config, **{**dict.fromkeys(BUDGETS), **fields})


def _fields(given: Any) -> dict[str, Quantity]:
    """What one budget sets, in the order of `BUDGETS`; numbers as floats, and texts without spaces.

    Raises:
        ValueError: it is no budget.
    """
    if isinstance(given, Mapping):
        others = [name for name in given if name not in BUDGETS]
        if others or not given:
            what = f"{others[0]!r:.80} is none" if others else "{} names none"
            raise ValueError(f"budgets: {what}; fields that are budgets are {', '.join(BUDGETS)}.")
        fields = {name: _value(given[name]) for name in BUDGETS if name in given}
    elif isinstance(given, str):
        fields = {name: _value(given) for name in BUDGETS if _is_of(name, _value(given))}
        if len(fields) != 1:
            raise ValueError(
                f"budgets: {given!r:.80} must be a number with a unit that only one budget has, such as '50M' or "
                f"'100MB', or name it: {{{BUDGETS[0]!r}: {given!r:.80}}} (there are {', '.join(BUDGETS)})."
            )
    else:
        fields = {"flops": _value(given)}
    for name, value in fields.items():
        try:
            check_quantity(name, value)
        except ValueError as error:
            raise ValueError(f"budgets: {error}") from error
    return fields


def _value(given: Any) -> Any:
    if isinstance(given, str):
        return re.sub(r"(?<=\d) (?=[A-Za-z])", "", given)
    return float(given) if is_number(given) else given


def _is_of(name: str, value: str) -> bool:
    try:
        check_quantity(name, value)
    except ValueError:
        return False
    return True
