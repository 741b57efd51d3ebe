"""What may go: names of layers, groups and roles in the configuration, as limits of each group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from math import lcm

from ..architectures.group import HEADS, NEURONS, Group
from ..config import OptinConfig
from ..storage.uniform import uniform_floors
from .limits import Limit, levelled, numbers_of

_EIGHTS = 8  # features: processors multiply matrices of other widths slower
_MANY = 256  # units of a group from which on they go by eights: at most a 32nd at once


def limits_of(config: OptinConfig, groups: Iterable[Group]) -> dict[str, Limit]:
    """Group key -> what a search must keep to.

    Raises:
        ValueError: a name that fits nothing of the model, a unit that is not there, or limits that contradict each
            other.
    """
    groups = list(groups)
    _check_names(config, groups)
    limits = {group.key: _limit(config, group, groups) for group in groups}
    if config.layout == "uniform":
        limits = levelled(limits, {group.key: group.units for group in groups})
    for group in groups:
        numbers_of(group.key, limits, group.units)
    return limits


def _limit(config: OptinConfig, group: Group, groups: Sequence[Group]) -> Limit:
    included = config.include is None or any(_fits(name, group) for name in config.include)
    if not included or any(_fits(name, group) for name in config.exclude):
        return Limit(least=group.units)
    least = max(_most_specific("floors", config.floors, group, _default_floor(config, group.role)), group.least)
    if config.layout == "uniform":
        least = uniform_floors(groups, {group.role: least})[group.role]
    most = _most_specific("ceilings", config.ceilings, group, None)
    step = lcm(config.round_to.get(group.role, 1), group.multiple)
    if config.layout == "uniform":
        step = lcm(step, group.step)
    limit = Limit(least, most, step, config.keep.get(group.key, ()), group.parts)
    if group.role in config.round_to or group.width > 1 or group.units < _MANY * group.parts:
        return limit
    by_eights = replace(limit, step=lcm(step, _EIGHTS * group.parts))
    return by_eights if by_eights.numbers(group.units) else limit


def _default_floor(config: OptinConfig, role: str) -> int:
    """The floor of a role that none was given for: `decoder_heads` are heads; what is neither is not emptied."""
    kind = role.rpartition("_")[2]
    return {HEADS: config.min_heads, NEURONS: config.min_neurons}.get(kind, 1)


def _fits(name: str, group: Group) -> bool:
    """Whether a role, the name of a layer or group, or a pattern of these two, fits a group."""
    return name == group.role or fnmatchcase(group.key, name) or fnmatchcase(group.layer, name)


def _most_specific(field: str, numbers: Mapping[str, int], group: Group, default: int | None) -> int | None:
    """The number of the most specific name that fits a group: its key, its layer, a pattern, its role.

    Raises:
        ValueError: two patterns that fit say different numbers.
    """
    order = {group.key: 0, group.layer: 1, group.role: 3}
    ranks = {name: order.get(name, 2) for name in numbers if _fits(name, group)}
    names = [name for name, rank in ranks.items() if rank == min(ranks.values())]
    if len({numbers[name] for name in names}) > 1:
        given = " and ".join(f"{field}[{name!r}]={numbers[name]}" for name in names)
        raise ValueError(f"{given} both fit {group.key}: name it by its key, {field}[{group.key!r}].")
    return numbers[names[0]] if names else default


def _check_names(config: OptinConfig, groups: Sequence[Group]) -> None:
    """Raise for what the model does not have."""
    given = [(f"{field}=[{name!r}]", name) for field in ("include", "exclude") for name in getattr(config, field) or ()]
    for field in ("floors", "ceilings"):
        given += [(f"{field}[{name!r}]={number}", name) for name, number in getattr(config, field).items()]
    for label, name in given:
        _check_there(label, name, any(_fits(name, group) for group in groups), groups)
    for role, number in config.round_to.items():
        _check_there(f"round_to[{role!r}]={number}", f"role {role}", role in {group.role for group in groups}, groups)
    sizes = {group.key: group.units for group in groups}
    for key, units in config.keep.items():
        label = f"keep[{key!r}]={list(units)}"
        _check_there(label, f"group {key}", key in sizes, groups)
        if units and units[-1] >= sizes[key]:
            raise ValueError(f"{label}: {key} has {sizes[key]} units, 0 to {sizes[key] - 1}.")


def _check_there(label: str, name: str, there: bool, groups: Sequence[Group]) -> None:
    if there:
        return
    roles = " and ".join(sorted({group.role for group in groups}))
    layers = ", ".join(dict.fromkeys(group.layer for group in groups))
    units = f"its units are {roles} of {layers}, and a group is called {groups[0].key}" if groups else "it has no units"
    raise ValueError(f"{label}: this model has no {name}; {units}.")
