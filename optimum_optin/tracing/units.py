"""From what reaches what to groups: slices that share channels are one unit, units of like slices one group."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..tainting.passes import Passes
from ..tainting.readers import Reader
from .found import FoundGroup, LeftOut, Slice
from .kinds import is_scale
from .relations import Relation

_OUTPUT = "it reaches the model's output by channel, whose shape must stay"
_WHOLE = "it also reaches all channels of another weight at once, as behind a normalisation"
_UNCUT = "the weight that reads it is rearranged first, and none of its indices is one of the channels read"
UNWRITTEN = "it scales or shifts channels that no weight writes by itself"
_SINGLE = "there is one unit only, and nothing to choose"


@dataclass(frozen=True, eq=False)
class _Place:
    """Runs of a tensor's indices, or a reader's channels, and the unit that each belongs to, -1 for none.

    `reader` is what the channels are of, `links` are the readers that runs are connected to.
    """

    tensor: str
    dim: int
    runs: Tensor  # (runs, indices per run)
    units: Tensor  # (runs,)
    reads: bool
    reader: Reader | None = None
    links: frozenset[Reader] = frozenset()

    @property
    def is_slice(self) -> bool:
        """Whether there is something to cut; of a rearranged weight, that is what its own indices are found to be."""
        return self.reader is None or not self.reader.is_rearranged


def partly_read(relations: Iterable[Relation]) -> set[Reader]:
    """The readers of which something reaches a part of the channels."""
    return {reader for each in relations for reader in each.links.edges}


def groups_of(relations: Sequence[Relation], passes: Passes) -> tuple[list[FoundGroup], list[LeftOut]]:
    """Units that share no channel, in groups of those that touch the same tensors.

    Args:
        relations: of all tensors.
        passes: of the model, which know how tensors are used.

    Returns:
        The groups, in the order of their readers, and what is no unit of a group, with reasons.
    """
    chosen = _without_crossing(_one_dimension_each(relations, passes), passes)
    places, count = _places(chosen, passes)
    reasons = _reasons(chosen, places)
    signatures = _signatures([*places, *reasons.values()], count)
    touched = defaultdict(list)
    for place in places:
        for signature in signatures[place.units[place.units >= 0]].unique().tolist():
            touched[signature].append(place)
    found, left = [], []
    for signature, own in touched.items():
        units = (signatures == signature).nonzero().flatten()
        reason = next((why for why, place in reasons.items() if torch.isin(units[0], place.units)), None)
        if reason is None and len(units) == 1:
            reason = _SINGLE
        if reason is None and not _can_be_cut(own):
            reason = _UNCUT
        if reason is None and not _are_written(own, passes):
            reason = UNWRITTEN
        if reason is None:
            found += _groups(units, own, count, passes)
        else:
            slices = [each for each in own if each.is_slice]
            left.append(LeftOut(tuple(f"{each.tensor}[{each.dim}]" for each in slices), reason))
    order: dict[str, int] = {}
    for place, reader in enumerate(passes.readers):
        order.setdefault(reader.tensor, place)
    # A rearranged weight may be read under another name than its own.
    return sorted(found, key=lambda group: min(order.get(each.tensor, len(order)) for each in group.reads)), left


def _places(relations: Sequence[Relation], passes: Passes) -> tuple[list[_Place], int]:
    """All that units are made of, and how many units there are: sets of runs and channels that are connected."""
    readers = passes.readers
    first, count = {}, 0
    for reader, size in readers.items():
        first[reader] = count
        count += size
    channels = count
    pairs = [torch.empty(2, 0, dtype=torch.long)]
    for relation in relations:
        for reader, (runs, reached) in relation.links.edges.items():
            if not reader.is_output:
                pairs.append(torch.stack([runs + count, reached + first[reader]]))
        count += len(relation.runs)
    one, other = torch.cat(pairs, 1).numpy()
    _, labels = connected_components(coo_array(([True] * len(one), (one, other)), shape=(count, count)), directed=False)
    linked = torch.zeros(count, dtype=torch.bool)
    linked[one], linked[other] = True, True
    labels = torch.from_numpy(labels).long()
    names, compact = labels[linked].unique(return_inverse=True)
    units = torch.full((count,), -1)
    units[linked] = compact
    places, start = [], channels
    for relation in relations:
        end = start + len(relation.runs)
        links = frozenset(relation.links.edges)
        reads = _is_read(relation, passes)
        places.append(_Place(relation.tensor, relation.dim, relation.runs, units[start:end], reads=reads, links=links))
        start = end
    for reader, size in readers.items():
        own = units[first[reader] : first[reader] + size]
        runs = torch.arange(size)[:: reader.inner, None] // reader.inner
        places.append(_Place(reader.tensor, reader.dim, runs, own[:: reader.inner], reads=True, reader=reader))
    return places, len(names)


def _is_read(relation: Relation, passes: Passes) -> bool:
    """Whether a dimension is one that a rearranged weight is summed over."""
    return any(each.is_rearranged and passes.weighs(relation.tensor, each) for each in relation.links.edges)


def _can_be_cut(places: Sequence[_Place]) -> bool:
    """Whether there is a slice for every reader, also for those of rearranged weights."""
    covered = {reader for place in places if place.reads for reader in place.links}
    return all(place.is_slice or place.reader in covered for place in places)


def _are_written(places: Sequence[_Place], passes: Passes) -> bool:
    """Whether a weight or a table writes what each reader reads, rather than a norm's scale and bias alone."""
    sizes = passes.tensors.by_name
    weights = [each for each in places if each.reader is None and not is_scale(sizes[each.tensor])]
    written = {reader for place in weights for reader in place.links}
    return all(place.reader is None or place.reader in written for place in places)


def _reasons(relations: Sequence[Relation], places: Sequence[_Place]) -> dict[str, _Place]:
    """Why units cannot be removed: reason -> the units, in the form of a place."""
    barred: dict[str, list[Tensor]] = {_OUTPUT: [], _WHOLE: []}
    for relation, place in zip(relations, places, strict=False):
        edges = relation.links.edges
        for reader, (runs, _) in edges.items():
            if reader.is_output:
                barred[_OUTPUT].append(place.units[runs])
        for reader, runs in relation.links.whole.items():
            # In a product by batches, a run may reach all of one dimension of a weight, and a part of the other.
            partly = [others for each, (others, _) in edges.items() if each.tensor == reader.tensor]
            other = runs[~torch.isin(runs, torch.cat(partly))] if partly else runs
            barred[_OUTPUT if reader.is_output else _WHOLE].append(place.units[other])
    units = {why: torch.cat(parts).unique() for why, parts in barred.items() if parts}
    return {why: _Place(why, 0, own[:, None], own, reads=False) for why, own in units.items()}


def _signatures(places: Iterable[_Place], count: int) -> Tensor:
    """A number for each unit, the same for units that have the same number of runs in every place."""
    signatures, following = torch.zeros(count, dtype=torch.long), 1
    for place in places:
        units, runs = place.units[place.units >= 0].unique(return_counts=True)
        if len(units):
            pairs = torch.stack([signatures[units], runs], 1)
            kinds, inverse = pairs.unique(dim=0, return_inverse=True)
            signatures[units] = following + inverse
            following += len(kinds)
    return signatures


def _groups(units: Tensor, places: Sequence[_Place], count: int, passes: Passes) -> list[FoundGroup]:
    """A group of some units, or one of each layer, where all that couples them is a table that several share."""
    reads = [place for place in places if place.reads]
    first = torch.full((count,), len(reads[0].units))
    kept = reads[0].units >= 0
    first.scatter_reduce_(0, reads[0].units[kept], kept.nonzero().flatten(), "amin")
    units = units[first[units].argsort(stable=True)]  # by their first channel
    position = torch.full((count + 1,), -1)  # the last entry is for what belongs to no unit
    position[units] = torch.arange(len(units))
    parts, shared = _apart(places, passes)
    return [
        _group([each for each in part if each.is_slice], shared[number], position) for number, part in parts.items()
    ]


def _group(places: Iterable[_Place], shared: Iterable[_Place], position: Tensor) -> FoundGroup:
    def cut(place: _Place) -> Slice:
        own = position[place.units]
        order = own.argsort(stable=True)[(own < 0).sum() :]
        units = int(position.max()) + 1
        return Slice(place.tensor, place.dim, place.runs[order].reshape(units, -1).sort(1).values)

    sides = [tuple(cut(place) for place in places if place.reads == reads) for reads in (False, True)]
    names = [each.tensor for side in sides for each in side]
    return FoundGroup(common_module(names), *sides, tuple(map(cut, shared)))


def _apart(places: Sequence[_Place], passes: Passes) -> tuple[dict[int, list[_Place]], dict[int, list[_Place]]]:
    """Places in parts that only tables connect which are in no product themselves (a position bias of all layers).

    Returns:
        Number of the part -> its places, and the tables that it shares with others.
    """
    tables = [place for place in places if place.reader is None and passes.is_plain(place.tensor)]
    others = [place for place in places if place not in tables]
    readers = [place for place in others if place.reader is not None]
    number = {id(place): index for index, place in enumerate(others)}
    pairs = [
        (number[id(place)], number[id(reader)])
        for place in others
        for reader in readers
        if reader.reader in place.links
    ]
    one, other = zip(*pairs, strict=True) if pairs else ((), ())
    graph = coo_array(([True] * len(one), (one, other)), shape=(len(others), len(others)))
    count, labels = connected_components(graph, directed=False)
    parts: dict[int, list[_Place]] = {part: [] for part in range(count)}
    for place in others:
        parts[int(labels[number[id(place)]])].append(place)
    touched = {
        id(table): {int(labels[number[id(reader)]]) for reader in readers if reader.reader in table.links}
        for table in tables
    }
    if count == 1 or not all({place.reads for place in part} == {False, True} for part in parts.values()):
        return {0: list(places)}, {0: []}
    shared: dict[int, list[_Place]] = {part: [] for part in parts}
    for table in tables:
        for part in touched[id(table)]:
            (shared if len(touched[id(table)]) > 1 else parts)[part].append(table)
    return parts, shared


def _one_dimension_each(relations: Sequence[Relation], passes: Passes) -> list[Relation]:
    """Of a tensor's dimensions the one that leaves most units: a weight (inputs, heads, width) has two.

    A rearranged weight has one that it writes, and one that it reads.
    """
    by_tensor: dict[tuple[str, bool], list[Relation]] = defaultdict(list)
    for relation in relations:
        if any(not reader.is_output for reader in relation.links.edges):
            by_tensor[relation.tensor, _is_read(relation, passes)].append(relation)
    chosen = [own[0] for own in by_tensor.values() if len(own) == 1]
    for own in by_tensor.values():
        if len(own) > 1:
            beside = [each for each in chosen if each.links.edges.keys() & own[0].links.edges.keys()]
            chosen.append(max(own, key=lambda one: _places([*beside, one], passes)[1]))
    return chosen


def _without_crossing(relations: Sequence[Relation], passes: Passes) -> list[Relation]:
    """Relations without those of scales and tables that are the same for many units, as a norm inside of each head is.

    Each of their indices belongs to several units, and each of these units has several of them: none goes with a unit.
    """
    weights = [each for each in relations if not passes.is_plain(each.tensor)]
    places, _ = _places(weights, passes)
    units = {place.reader: place.units for place in places if place.reader is not None}
    inner = {reader: reader.inner for reader in units}
    return [each for each in relations if each in weights or not _crosses(each, units, inner)]


def _crosses(relation: Relation, units: Mapping[Reader, Tensor], inner: Mapping[Reader, int]) -> bool:
    pairs = []
    for reader, (runs, channels) in relation.links.edges.items():
        if reader in units:
            own = units[reader][channels // inner[reader]]
            pairs.append(torch.stack([runs[own >= 0], own[own >= 0]]))
    if not pairs:
        return False
    runs, touched = torch.cat(pairs, 1).unique(dim=1)
    units_of_run = torch.bincount(runs)[runs]
    runs_of_unit = torch.bincount(touched)[touched]
    return bool(((units_of_run > 1) & (runs_of_unit > 1)).any())


def common_module(names: Iterable[str]) -> str:
    """Path of the smallest module around tensors of these names."""
    common = []
    for level in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(level)) > 1:
            break
        common.append(level[0])
    return ".".join(common)
