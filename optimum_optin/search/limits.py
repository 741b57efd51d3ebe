"""Limits: how many units of a group may stay, in what steps, and which must."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import lcm


@dataclass(frozen=True)
class Limit:
    """What a search must keep to in one group.

    Args:
        least: units that stay at least; all of a group that has fewer.
        most: units that stay at most; `None` for no such limit.
        step: the number of units that stay is a multiple of it, or all of them.
        stay: units that must stay, by their index.
        parts: equal parts of the units, each of which keeps equally many.
    """

    least: int = 0
    most: int | None = None
    step: int = 1
    stay: tuple[int, ...] = ()
    parts: int = 1

    def at_least(self, units: int) -> int:
        """How many of so many units stay at least."""
        in_parts = [unit * self.parts // units for unit in self.stay] if units else []
        stay = max((in_parts.count(part) for part in in_parts), default=0) * self.parts
        return min(max(self.least, stay), units)

    def numbers(self, units: int) -> list[int]:
        """How many of so many units may stay, ascending; none where the limits contradict each other."""
        least, step = self.at_least(units), lcm(self.step, self.parts)
        most = units if self.most is None else min(self.most, units)
        found = [*range(-(-least // step) * step, most + 1, step)]
        return found if most < units or units in found else [*found, units]


Limits = Mapping[str, "int | Limit"]
"""Role -> units that every group of it keeps at least; or group key -> `Limit`, in the place of its role's number."""


def role_of(key: str) -> str:
    """The role that a group's key ends in."""
    return key.rpartition(".")[2]


def limit_of(key: str, limits: Limits) -> Limit:
    """A group's own limit, else its role's, else none."""
    found = limits.get(key, limits.get(role_of(key), 0))
    return found if isinstance(found, Limit) else Limit(least=found)


def numbers_of(key: str, limits: Limits, units: int) -> list[int]:
    """How many of a group's units may stay, ascending.

    Raises:
        ValueError: no number may.
    """
    limit = limit_of(key, limits)
    numbers = limit.numbers(units)
    if not numbers:
        least, step = limit.at_least(units), lcm(limit.step, limit.parts)
        steps = f", in multiples of {step}" if step > 1 else ""
        raise ValueError(
            f"{key} can keep no number of its {units} units: at least {least} and at most {limit.most} are to "
            f"stay{steps}. Change floors (or min_heads, min_neurons), ceilings, keep or round_to."
        )
    return numbers


def levelled(limits: Limits, sizes: Mapping[str, int]) -> dict[str, Limit]:
    """Limits under which every group of a role can keep the same number, or all of its units if it has fewer.

    The largest of a role's floors is every group's, and so is the smallest of its ceilings.

    Args:
        limits: of the groups, or of their roles.
        sizes: group key -> its units.
    """
    found = {key: limit_of(key, limits) for key in sizes}
    for role in {role_of(key) for key in sizes}:
        keys = [key for key in sizes if role_of(key) == role]
        least = max(found[key].at_least(sizes[key]) for key in keys)
        ceilings = [found[key].most for key in keys if found[key].most is not None and found[key].most < sizes[key]]
        step = max(found[key].step for key in keys)
        for key in keys:
            found[key] = replace(found[key], least=least, most=min(ceilings, default=None), step=step)
    return found
