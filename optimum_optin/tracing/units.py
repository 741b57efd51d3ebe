"""From what reaches what to groups: slices that share channels are one unit, units of like slices one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from .barriers import Reader
from .found import FoundGroup, LeftOut, Slice
from .relations import Relation


def groups_of(relations: Sequence[Relation], readers: Mapping[Reader, int]) -> tuple[list[FoundGroup], list[LeftOut]]:
    """Units that share no channel, in groups of those that touch the same tensors.

    Args:
        relations: of all tensors.
        readers: reader -> how many channels it has, in the order in which they run.

    Returns:
        The groups, in the order of the readers, and what is no unit of a group, with reasons.
    """
    chosen = _one_dimension_each(relations, readers)
    channels = _Channels(readers, chosen)
    slices: dict[int, dict[tuple[str, int], list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    reasons: dict[int, str] = {}
    for relation in chosen:
        for run, unit in channels.units_of(relation).items():
            slices[unit][relation.tensor, relation.dim].append(relation.runs[run])
        reasons |= channels.barred(relation)
    alike: dict[tuple, list[int]] = defaultdict(list)
    for unit, own in slices.items():
        signature = tuple((place, sum(map(len, runs))) for place, runs in own.items())
        alike[signature, channels.signature(unit), reasons.get(unit)].append(unit)
    found, left = [], []
    for (signature, read, reason), units in alike.items():
        if reason is None and len(units) == 1:
            reason = "a single unit, so that there is nothing to choose"
        if reason is None:
            found.append(_group(units, slices, channels))
        else:
            left.append(LeftOut(_names([place for place, _ in signature], read), reason))
    order = {reader.tensor: place for place, reader in enumerate(readers)}
    return sorted(found, key=lambda group: min(order[each.tensor] for each in group.reads)), left


class _Channels:
    """All readers' channels, numbered, and in one set those that belong to one unit."""

    def __init__(self, readers: Mapping[Reader, int], relations: Iterable[Relation]) -> None:
        self._first, count = {}, 0
        for reader, size in readers.items():
            self._first[reader] = count
            count += size
        self._readers = readers
        self._parent = list(range(count))
        self._partial = {id(relation): self._partial_edges(relation) for relation in relations}
        for edges in self._partial.values():
            for _, channels in edges:
                for channel in channels[1:]:
                    self._parent[self._root(channel)] = self._root(channels[0])
        self._members: dict[int, list[int]] = defaultdict(list)
        for channel in {channel for edges in self._partial.values() for _, part in edges for channel in part}:
            self._members[self._root(channel)].append(channel)

    def units_of(self, relation: Relation) -> dict[int, int]:
        """Run -> its unit, of the runs that belong to one."""
        return {run: self._root(channels[0]) for run, channels in self._partial[id(relation)]}

    def signature(self, unit: int) -> tuple[tuple[Reader, int], ...]:
        """How many channels of which reader a unit owns."""
        return tuple((reader, len(own)) for reader, own in self.of(unit).items())

    def of(self, unit: int) -> dict[Reader, list[int]]:
        """The channels of a unit, by reader."""
        own: dict[Reader, list[int]] = {}
        members = sorted(self._members[unit])
        place, bounds = 0, list(self._first.items())
        for channel in members:
            while place + 1 < len(bounds) and bounds[place + 1][1] <= channel:
                place += 1
            reader, first = bounds[place]
            own.setdefault(reader, []).append(channel - first)
        return own

    def barred(self, relation: Relation) -> dict[int, str]:
        """Unit -> why it cannot be removed."""
        units, reasons = self.units_of(relation), {}
        for reader, (runs, _) in relation.edges.items():
            counts = torch.bincount(runs, minlength=len(relation.runs))
            for run in (counts > 0).nonzero().flatten().tolist():
                if run in units and reader.is_output:
                    reasons[units[run]] = "it reaches the model's output by channel, whose shape must stay"
                elif run in units and counts[run] == self._readers[reader] and not self._split(relation, run, reader):
                    reasons[units[run]] = (
                        f"it also reaches all channels of {reader.tensor} at once, as behind a normalisation"
                    )
        return reasons

    def _split(self, relation: Relation, run: int, whole: Reader) -> bool:
        """Whether the run reaches part of another dimension of the same weight."""
        others = [each for each in relation.edges if each.tensor == whole.tensor and each != whole]
        return any((relation.edges[each][0] == run).sum() < self._readers[each] for each in others)

    def _partial_edges(self, relation: Relation) -> list[tuple[int, list[int]]]:
        """Run -> numbers of the channels that it reaches, where it does not reach all of a reader's."""
        reached: dict[int, list[int]] = defaultdict(list)
        for reader, (runs, channels) in relation.edges.items():
            if reader.is_output:
                continue
            counts = torch.bincount(runs, minlength=len(relation.runs))
            keep = counts[runs] < self._readers[reader]
            for run, channel in zip(runs[keep].tolist(), (channels[keep] + self._first[reader]).tolist(), strict=True):
                reached[run].append(channel)
        return list(reached.items())

    def _root(self, channel: int) -> int:
        parent = self._parent
        while parent[channel] != channel:
            parent[channel] = parent[parent[channel]]
            channel = parent[channel]
        return channel


def _one_dimension_each(relations: Sequence[Relation], readers: Mapping[Reader, int]) -> list[Relation]:
    """Of a tensor's dimensions the one that leaves most units: a weight (inputs, heads, width) has two."""
    by_tensor: dict[str, list[Relation]] = defaultdict(list)
    for relation in relations:
        by_tensor[relation.tensor].append(relation)
    chosen = [own[0] for own in by_tensor.values() if len(own) == 1]
    for own in by_tensor.values():
        if len(own) > 1:
            beside = [each for each in chosen if set(each.edges) & set(own[0].edges)]
            chosen.append(max(own, key=lambda one: _count_units([*beside, one], one, readers)))
    return chosen


def _count_units(relations: list[Relation], one: Relation, readers: Mapping[Reader, int]) -> int:
    return len(set(_Channels(readers, relations).units_of(one).values()))


def _group(units: list[int], slices: Mapping, channels: _Channels) -> FoundGroup:
    own = {unit: channels.of(unit) for unit in units}
    units = sorted(units, key=lambda unit: next(iter(own[unit].values())))
    writes = []
    for tensor, dim in slices[units[0]]:
        indices = [torch.cat(slices[unit][tensor, dim]).sort().values for unit in units]
        writes.append(Slice(tensor, dim, torch.stack(indices)))
    reads = []
    for reader in own[units[0]]:
        entries = torch.tensor([own[unit][reader] for unit in units])
        reads.append(Slice(reader.tensor, reader.dim, entries[:, :: reader.inner] // reader.inner))
    names = [each.tensor for each in (*writes, *reads)]
    return FoundGroup(_common_module(names), tuple(writes), tuple(reads))


def _common_module(names: list[str]) -> str:
    levels = zip(*(name.split(".")[:-1] for name in names), strict=False)
    common = []
    for level in levels:
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)


def _names(places: Iterable[tuple[str, int]], read: Iterable[tuple[Reader, int]]) -> tuple[str, ...]:
    return tuple(f"{tensor}[{dim}]" for tensor, dim in dict.fromkeys([*places, *(each[:2] for each, _ in read)]))
