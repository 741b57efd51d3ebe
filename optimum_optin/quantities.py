"""Quantities: shares of the dense model, and numbers with a unit, such as `"20ms"`, `"50M"` or `"100MB"`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from .config_values import is_number

Quantity = float | str
"""A share of the dense model's, in (0, 1], or a number with a unit."""

UNITS: Mapping[str, Mapping[str, float]] = {
    "flops": {
        f"{prefix}{name}": size * macs
        for name, macs in (("MACs", 1.0), ("FLOPs", 0.5))
        for prefix, size in (("K", 1e3), ("M", 1e6), ("G", 1e9), ("T", 1e12))
    },
    "params": {"K": 1e3, "M": 1e6, "B": 1e9},
    "memory": {"KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
    "latency": {"us": 1e-6, "ms": 1e-3, "s": 1.0},
}
"""Budget -> its units, and how many multiply-accumulates, parameters, bytes or seconds each is."""

_EXAMPLES = {"flops": "850MMACs", "params": "50M", "memory": "100MB", "latency": "20ms"}
_SHOWN = {
    "flops": ("GMACs", "MMACs"),
    "params": ("B", "M", "K"),
    "memory": ("GB", "MB", "KB"),
    "latency": ("s", "ms", "us"),
}


def check_quantity(name: str, value: object) -> None:
    """Raise if a budget is neither a share in (0, 1] nor a number with one of its units.

    Args:
        name: of the budget.
        value: what was given for it.

    Raises:
        ValueError: says what it must be.
    """
    if is_share(value) or (isinstance(value, str) and _amount(name, value) > 0):
        return
    raise ValueError(
        f"{name}={value!r} must be a share of the dense model's, in (0, 1], or a number above 0 with a unit "
        f"({', '.join(UNITS[name])}), such as {_EXAMPLES[name]!r}."
    )


def is_share(value: object) -> bool:
    """Whether it is a number in (0, 1]."""
    return is_number(value) and 0 < value <= 1


def amount_of(name: str, value: Quantity, dense: float) -> float:
    """A budget in multiply-accumulates, parameters, bytes or seconds.

    Args:
        name: of the budget.
        value: the share, or the number with a unit, that was asked for.
        dense: what the dense model takes.
    """
    return _amount(name, value) if isinstance(value, str) else value * dense


def shown(name: str, amount: float) -> str:
    """An amount of what a budget limits, with a unit that makes it easy to read."""
    units = [unit for unit in _SHOWN[name] if amount >= UNITS[name][unit]]
    unit = (units or [_SHOWN[name][-1]])[0]
    return f"{amount / UNITS[name][unit]:.4g}{unit}"


def _amount(name: str, text: str) -> float:
    """A number with a unit in the budget's base unit; 0 for any other text."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,15})?) ?([A-Za-z]{1,8})", text)
    return float(found[1]) * UNITS[name].get(found[2], 0.0) if found else 0.0
