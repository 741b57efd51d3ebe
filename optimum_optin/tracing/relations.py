"""Which index of a tensor reaches which channels, exactly, in few passes.

Indices come in runs that reach the same channels: all rows of an attention head's queries reach the head, an FFN neuron
is a run of one. Runs are told apart by binary codes, 2 log2(n) passes for n runs, which is exact where every channel
has one source. Where a channel has several (packed projections), halves, thirds, and every second one are tried by
themselves; if no such part has channels of one source, runs are spoilt one by one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .barriers import Reader
from .kinds import Reached, code_bits

Measure = Callable[[Tensor], Mapping[str, Reached]]
"""Indices -> what each tensor reaches if these are spoilt in all."""

_FEW, _MANY = 16, 1024  # runs: so many are spoilt one by one at once; more than so many never
# In how many parts channels of one source are looked for, and whether a part is a block or every so-many-th run.
_PARTS = ((1, "blocks"), (2, "blocks"), (3, "blocks"), (2, "turns"), (3, "turns"))


@dataclass(frozen=True, eq=False)
class Links:
    """What runs reach, by reader.

    Args:
        edges: runs and channels, two vectors as long as there are pairs of a run and a channel that it reaches; without
            the runs that reach all channels.
        whole: the runs that reach all channels.
    """

    edges: Mapping[Reader, tuple[Tensor, Tensor]]
    whole: Mapping[Reader, Tensor]


@dataclass(frozen=True, eq=False)
class Relation:
    """What the indices of one dimension of a tensor reach.

    Args:
        tensor: its name.
        dim: the dimension.
        runs: indices that reach the same channels, shape (runs, indices per run).
        links: what the runs reach.
    """

    tensor: str
    dim: int
    runs: Tensor
    links: Links


def points(size: int) -> list[int]:
    """Indices that are looked at by themselves: the first and the middle one."""
    return [0, size // 2]


def relations(measure: Measure, names: list[str], dim: int, size: int, lengths: Iterable[int]) -> list[Relation] | None:
    """What the indices of like tensors reach; `None` if that cannot be told in a reasonable number of passes.

    Args:
        measure: see `Measure`.
        names: the tensors, of which no two reach the same reader.
        dim: the dimension.
        size: its size.
        lengths: of runs in other tensors, which are looked for first.
    """
    alone = {point: measure(torch.tensor([point])) for point in points(size)}
    flooded = set.intersection(*(_whole(reached) for reached in alone.values()))
    runs = torch.arange(size).view(-1, _run_length(measure, size, alone, lengths))
    links = _one_by_one(measure, names, runs) if len(runs) <= _FEW else _in_parts(measure, names, runs, flooded)
    if links is None and len(runs) <= _MANY:
        links = _one_by_one(measure, names, runs)
    return links and [Relation(name, dim, runs, links[name]) for name in names]


def _whole(reached: Mapping[str, Reached]) -> set[Reader]:
    return {reader for readers in reached.values() for reader, mask in readers.items() if mask.all()}


def _run_length(measure: Measure, size: int, alone: Mapping[int, Mapping[str, Reached]], lengths: Iterable[int]) -> int:
    """How many indices in a row reach the same channels: measured where most are reached, and a divisor of `size`.

    Args:
        measure: see `Measure`.
        size: how many indices there are.
        alone: some indices, and what each of them reaches.
        lengths: what may well be the length.
    """
    start = max(alone, key=lambda point: (_channels(alone[point]), -point))

    def same(first: int, last: int) -> bool:
        return _equal(measure(torch.arange(first, last + 1)), alone[start])

    neighbour = start + 1 if start + 1 < size else start - 1
    if not same(min(start, neighbour), max(start, neighbour)):
        return 1
    for length in lengths if start == 0 else ():
        if size % length == 0 and same(0, length - 1) and (length == size or not same(0, length)):
            return length
    last = _furthest(lambda point: same(start, point), start, size - 1)
    first = start - _furthest(lambda step: same(start - step, start), 0, start)
    return math.gcd(size, first, last + 1)


def _furthest(holds: Callable[[int], bool], first: int, last: int) -> int:
    """The last number up to which something holds that holds of `first`, and never again once it does not."""
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if holds(middle) else (first, middle - 1)
    return first


def _channels(reached: Mapping[str, Reached]) -> int:
    """Channels reached, those of readers that are reached wholly left out."""
    masks = (mask for readers in reached.values() for mask in readers.values())
    return sum(int(mask.sum()) for mask in masks if not mask.all())


def _equal(one: Mapping[str, Reached], other: Mapping[str, Reached]) -> bool:
    def flat(reached: Mapping[str, Reached]) -> dict[Reader, Tensor]:
        return {reader: mask for readers in reached.values() for reader, mask in readers.items()}

    left, right = flat(one), flat(other)
    return left.keys() == right.keys() and all(torch.equal(left[reader], right[reader]) for reader in left)


def _one_by_one(measure: Measure, names: list[str], runs: Tensor) -> dict[str, Links]:
    found: dict[str, list[Links]] = {name: [] for name in names}
    for number, run in enumerate(runs):
        for name, readers in measure(run).items():
            found[name].append(_links(torch.tensor([number]), readers))
    return {name: _joined(links) for name, links in found.items()}


def _in_parts(measure: Measure, names: list[str], runs: Tensor, flooded: set[Reader]) -> dict[str, Links] | None:
    numbers = torch.arange(len(runs))
    for count, form in _PARTS:
        if len(runs) % count:
            continue
        parts = numbers.view(count, -1) if form == "blocks" else numbers.view(-1, count).T
        decoded = []
        for part in parts:
            one = _by_codes(measure, names, runs, part, flooded)
            if one is None:
                break
            decoded.append(one)
        else:
            return {name: _joined([each[name] for each in decoded]) for name in names}
    return None


def _by_codes(
    measure: Measure, names: list[str], runs: Tensor, part: Tensor, flooded: set[Reader]
) -> dict[str, Links] | None:
    """What some runs reach, if every channel is reached by one of them at most; otherwise `None`."""
    places = torch.arange(len(part))
    codes: dict[tuple[str, Reader], list[tuple[Tensor, Tensor]]] = {}
    whole: dict[str, dict[Reader, Tensor]] = {name: {} for name in names}
    bits = code_bits(len(part))
    for bit in range(bits):
        halves = [measure(runs[part[places >> bit & 1 == value]].flatten()) for value in (0, 1)]
        for name in names:
            for reader in halves[0][name].keys() | halves[1][name].keys():
                if reader in flooded:
                    whole[name][reader] = part
                    continue
                some = next(half[name][reader] for half in halves if reader in half[name])
                zero, one = (half[name].get(reader, torch.zeros_like(some)) for half in halves)
                if (zero & one).any():
                    return None
                codes.setdefault((name, reader), []).append((zero, one))
    edges: dict[str, dict[Reader, tuple[Tensor, Tensor]]] = {name: {} for name in names}
    for (name, reader), pairs in codes.items():
        reached = [zero | one for zero, one in pairs]
        if len(pairs) < bits or any(not torch.equal(each, reached[0]) for each in reached):
            return None  # which is reached depends on what else is spoilt
        numbers = sum(one.long() << bit for bit, (_, one) in enumerate(pairs))
        channels = reached[0].nonzero().flatten()
        if len(channels) == len(numbers) and (numbers == numbers[0]).all():
            whole[name][reader] = part[numbers[:1]]
        else:
            edges[name][reader] = part[numbers[channels]], channels
    return {name: Links(edges[name], whole[name]) for name in names}


def _links(run: Tensor, readers: Reached) -> Links:
    channels = {reader: mask.nonzero().flatten() for reader, mask in readers.items() if not mask.all()}
    edges = {reader: (run.expand(len(own)), own) for reader, own in channels.items()}
    return Links(edges, {reader: run for reader, mask in readers.items() if mask.all()})


def _joined(links: list[Links]) -> Links:
    edges: dict[Reader, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    whole: dict[Reader, list[Tensor]] = defaultdict(list)
    for each in links:
        for reader, edge in each.edges.items():
            edges[reader].append(edge)
        for reader, runs in each.whole.items():
            whole[reader].append(runs)
    joined = {reader: tuple(map(torch.cat, zip(*parts, strict=True))) for reader, parts in edges.items()}
    return Links(joined, {reader: torch.cat(parts) for reader, parts in whole.items()})
