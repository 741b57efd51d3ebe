"""The structure of a pruned model: layer x role x kept units, and its JSON form.

The form never names modules (their names differ between memory and disk) and is readable:
`{"layers.0.heads": {"units": 12, "kept": "0-4,7,9-11"}}`. `units` counts the dense model's units and
`kept` indexes them, so that pruning a pruned model composes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from operator import eq

import torch

from ..architectures.group import Group, Masks

_RANGES = re.compile(r"([0-9]{1,7}(-[0-9]{1,7})?(,[0-9]{1,7}(-[0-9]{1,7})?)*)?")


class Ranges:  # noqa: PLW1641 (no key of anything)
    """Ascending indices that take no more memory than their text: a file may name a million of them in eight bytes."""

    def __init__(self, parts: Iterable[range]):
        self._parts = tuple(parts)
        self.last = max((part[-1] for part in self._parts), default=-1)

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[int]:
        return chain.from_iterable(self._parts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, (Ranges, tuple)) and len(self) == len(other) and all(map(eq, self, other))


@dataclass(frozen=True)
class Kept:
    """The units one group keeps.

    Args:
        units: units of the dense model's group.
        kept: indices of the units that stay, ascending.
    """

    units: int
    kept: tuple[int, ...] | Ranges


Structure = dict[str, Kept]
"""Group key -> what it keeps."""


def structure_of(groups: Iterable[Group], masks: Masks) -> Structure:
    """The structure that `masks` leave of `groups`."""
    return {group.key: Kept(group.units, tuple(masks[group.key].nonzero().flatten().tolist())) for group in groups}


def compose(earlier: Structure, later: Structure) -> Structure:
    """The structure after two prunings; `later` indexes the units that `earlier` kept.

    Raises:
        ValueError: a group does not have the units that were kept.
    """
    composed = dict(earlier)
    for key, entry in later.items():
        before = earlier.get(key, Kept(entry.units, tuple(range(entry.units))))
        if len(before.kept) != entry.units:
            raise ValueError(
                f"{key} kept {len(before.kept)} units of an earlier pruning, but was now cut from {entry.units}: its "
                "groups do not have the names that they had then. Prune the dense model."
            )
        kept = tuple(before.kept)
        composed[key] = Kept(before.units, tuple(kept[index] for index in entry.kept))
    return composed


def masks_of(structure: Structure, groups: Iterable[Group]) -> dict[str, torch.Tensor]:
    """Masks that cut a dense model to `structure`; groups that it does not name stay whole.

    Raises:
        ValueError: an entry does not fit the groups; names it.
    """
    groups = {group.key: group for group in groups}
    for key, entry in structure.items():
        if key not in groups:
            raise ValueError(f"structure entry {key!r} names no group of this model; it has {', '.join(groups)}.")
        if entry.units != groups[key].units:
            raise ValueError(
                f"structure entry {key!r} was cut from {entry.units} units, but this model has "
                f"{groups[key].units} there: config.json and the structure do not belong together."
            )
    masks = {}
    for key, group in groups.items():
        mask = torch.ones(group.units, dtype=torch.bool, device="cpu")  # models load under torch.device("meta")
        if key in structure:
            mask[:] = False
            mask[list(structure[key].kept)] = True
        masks[key] = mask
    return masks


def structure_to_json(structure: Structure) -> dict[str, dict[str, int | str]]:
    """JSON form of `structure`."""
    return {key: {"units": entry.units, "kept": ranges_to_json(entry.kept)} for key, entry in structure.items()}


def structure_from_json(data: Mapping[str, Mapping]) -> Structure:
    """Read the JSON form; what it takes is bounded by its text, whatever numbers stand there.

    Raises:
        ValueError: an entry is damaged; names it.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"structure must map group names to entries, got {type(data).__name__}.")
    return {key: _parse_entry(key, entry) for key, entry in data.items()}


def ranges_from_json(text: str) -> Ranges | None:
    """Indices from their form `"0-4,7"`: ascending, and below what no layer comes near; `None` if it is damaged."""
    if not isinstance(text, str) or not _RANGES.fullmatch(text):
        return None
    parts, before = [], -1
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        start, stop = int(first), int(last or first)
        if not before < start <= stop < MOST_UNITS:
            return None
        parts.append(range(start, stop + 1))
        before = stop
    return Ranges(parts)


def selected_from_json(text: str) -> tuple[Ranges, int | None] | None:
    """Heads that stay, and how many there were, from their form `"0-4,7 of 12"`; `None` if it is damaged.

    Earlier folders do not say how many there were, which is `None` then.
    """
    ranges, separator, count = text.partition(" of ") if isinstance(text, str) else ("a", "", "")
    kept = ranges_from_json(ranges)
    if kept is None or not separator:
        return None if kept is None else (kept, None)
    if not re.fullmatch(r"[0-9]{1,7}", count) or int(count) <= kept.last:
        return None
    return kept, int(count)


def ranges_to_json(indices: Iterable[int]) -> str:
    """The form `"0-4,7"` of ascending indices."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _parse_entry(key: str, entry: Mapping) -> Kept:
    fits = (
        isinstance(entry, Mapping)
        and set(entry) == {"units", "kept"}
        and type(entry["units"]) is int
        and 0 <= entry["units"] <= MOST_UNITS
        and isinstance(entry["kept"], str)
        and _RANGES.fullmatch(entry["kept"])
    )
    if not fits:
        raise ValueError(
            f'structure entry {key!r} must look like {{"units": 12, "kept": "0-4,7"}}, at most {MOST_UNITS} units, '
            f"got {entry!r:.120}."
        )
    kept = ranges_from_json(entry["kept"])
    if kept is None or kept.last >= entry["units"]:
        raise ValueError(
            f"structure entry {key!r}: {entry['kept']!r:.120} must ascend and stay below its {entry['units']} units."
        )
    return Kept(entry["units"], kept)


# No layer of any published model comes near; a damaged file must not make us allocate gigabytes.
MOST_UNITS = 1_000_000
