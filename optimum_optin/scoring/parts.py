"""Parts of a model whose sums are in memory at once: each takes a pass over the data, where those of all do not fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from ..architectures.group import Group, Groups

_LEAST = 2**29  # bytes of sums that a machine is taken to have room for


def room_for(model: nn.Module) -> int:
    """Bytes that sums may take: a third of what the model does, and half a gigabyte at least."""
    return max(_LEAST, sum(parameter.nbytes for parameter in model.parameters()) // 3)


def parts_of(groups: Groups, sizes: Mapping[str, int], most: int) -> list[Groups]:
    """The groups in parts, in order, each with as many as there is room for, or one.

    Groups that share a consumer stay together, as their orders of removal go by the same sums.

    Args:
        groups: of a model.
        sizes: path of every consumer -> bytes of its sums.
        most: bytes that the sums of a part may take.
    """
    parts: list[list[Group]] = []
    left = 0
    for clump in _clumps(groups):
        size = sum(sizes[path] for path in {each.path for group in clump for each in group.consumers})
        if not parts or size > left:
            parts.append([])
            left = most
        parts[-1] += clump
        left -= size
    order = {group.key: place for place, group in enumerate(groups)}
    return [replace(groups, members=tuple(sorted(part, key=lambda group: order[group.key]))) for part in parts]


def _clumps(groups: Groups) -> list[list[Group]]:
    """The groups, those together that share consumers, directly or by way of others."""
    clumps: dict[int, list[Group]] = {}
    place_of: dict[str, int] = {}  # consumer -> number of its clump
    for number, group in enumerate(groups):
        paths = [each.path for each in group.consumers]
        shared = sorted({place_of[path] for path in paths if path in place_of})
        members = [member for place in shared for member in clumps.pop(place)] + [group]
        place = shared[0] if shared else number
        clumps[place] = members
        place_of.update({each.path: place for member in members for each in member.consumers})
    return [clumps[place] for place in sorted(clumps)]
