"""Stairs: a few measured times of a kind of sublayer as a time for every number of units."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_SLOPE = 1e-7  # of the dense time, or of a table's end, for all units of a group: costs rise with every unit


@dataclass(frozen=True)
class Stairs:
    """What a kind of groups takes of the dense model's time, by how many units each of them keeps.

    Args:
        groups: keys of its groups.
        units: numbers of units that were measured, ascending; the first is 0, the last all.
        shares: of the dense model's time, for all groups together, more than with none left; the first is 0.
        multiple: numbers of units between two multiples of it take as long as the higher one; those below the first do
            not.
    """

    groups: tuple[str, ...]
    units: tuple[int, ...]
    shares: tuple[float, ...]
    multiple: int = 1

    def table(self) -> Tensor:
        """Share of the dense time that one group takes with 0, 1, ... units; it rises, float64, shape (units + 1,)."""
        counts = torch.arange(self.units[-1] + 1, dtype=torch.float64)
        shares = _interpolated(counts, self.units, _rising(self.shares)) / len(self.groups)
        return on_stairs(shares + counts * (_SLOPE / self.units[-1]), self.multiple)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as a dict that `json` can write."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in vars(self).items()}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Stairs:
        """The stairs with these fields."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def on_stairs(table: Tensor, multiple: int) -> Tensor:
    """A table of costs in which numbers between two multiples cost what the higher one does, but for a trace."""
    counts = torch.arange(len(table))
    stairs = torch.tensor([climbed(count, multiple) for count in range(len(table))]).clamp(max=len(table) - 1)
    return table[stairs] + (counts - stairs) * (_SLOPE * table[-1] / len(table))


def climbed(count: int, multiple: int) -> int:
    """The smallest multiple that is no less than a number; numbers below the first multiple stay."""
    return -(-count // multiple) * multiple if count > multiple else count


def _rising(values: Sequence[float]) -> Tensor:
    """Values that never fall, between the least and the most that make them so; none is below the first."""
    given = torch.tensor(values, dtype=torch.float64).clamp(min=values[0])
    return (given.cummax(0).values + given.flip(0).cummin(0).values.flip(0)) / 2


def _interpolated(places: Tensor, known: Sequence[int], values: Tensor) -> Tensor:
    """Values at places between known ones, on straight lines."""
    known = torch.tensor(known, dtype=torch.float64)
    after = torch.searchsorted(known, places).clamp(1, len(known) - 1)
    low, high = known[after - 1], known[after]
    part = (places - low) / (high - low)
    return values[after - 1] * (1 - part) + values[after] * part
