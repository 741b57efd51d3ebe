"""Which index of a tensor reaches which channels, exactly, in few passes.

Indices come in runs that reach the same channels: all rows of an attention head's queries reach the head, an FFN neuron is a
run of one. Runs are told apart by binary codes, 2 log2(n) passes for n runs, which is exact where every channel has one
source. Where a channel has several (packed projections), halves, thirds, and every second one are tried by themselves;
if no such part has channels of one source, runs are spoilt one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
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

Edges = Mapping[Reader, tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Relation:
    """What the indices of one dimension of a tensor reach.

    Args:
        tensor: its name.
        dim: the dimension.
        runs: indices that reach the same channels, shape (runs, indices per run).
        edges: reader -> runs and channels, two vectors as long as there are pairs of a run and a channel that it reaches.
    """

    tensor: str
    dim: int
    runs: Tensor
    edges: Edges


def points(size: int) -> list[int]:
    """Indices that are looked at by themselves: the first and the middle one."""
    return [0, size // 2]


def relations(
    measure: Measure, names: list[str], dim: int, size: int, lengths: Iterable[int]
) -> list[Relation] | None:
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
    edges = _one_by_one(measure, names, runs) if len(runs) <= _FEW else _in_parts(measure, names, runs, flooded)
    if edges is None and len(runs) <= _MANY:
        edges = _one_by_one(measure, names, runs)
    return edges and [Relation(name, dim, runs, edges[name]) for name in names]


def _whole(reached: Mapping[str, Reached]) -> set[Reader]:
    return {reader for readers in reached.values() for reader, mask in readers.items() if mask.all()}


def _run_length(
    measure: Measure, size: int, alone: Mapping[int, Mapping[str, Reached]], lengths: Iterable[int]
) -> int:
    """How many indices in a row reach the same channels: the longest that divides `size` and fits where most are reached.

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


def _one_by_one(measure: Measure, names: list[str], runs: Tensor) -> dict[str, Edges]:
    rows: dict[str, dict[Reader, list[Tensor]]] = {name: {} for name in names}
    for number, run in enumerate(runs):
        for name, readers in measure(run).items():
            for reader, mask in readers.items():
                channels = mask.nonzero().flatten()
                rows[name].setdefault(reader, []).append(torch.stack([torch.full_like(channels, number), channels]))
    return {
        name: {reader: tuple(torch.cat(pairs, 1)) for reader, pairs in readers.items()} for name, readers in rows.items()
    }


def _in_parts(measure: Measure, names: list[str], runs: Tensor, flooded: set[Reader]) -> dict[str, Edges] | None:
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
            return {name: dict(_joined([each[name] for each in decoded])) for name in names}
    return None


def _by_codes(
    measure: Measure, names: list[str], runs: Tensor, part: Tensor, flooded: set[Reader]
) -> dict[str, Edges] | None:
    """Edges of some runs, if every channel is reached by one of them at most; otherwise `None`."""
    places = torch.arange(len(part))
    codes: dict[str, dict[Reader, Tensor]] = {name: {} for name in names}
    bits = code_bits(len(part))
    for bit in range(bits):
        halves = [measure(runs[part[places >> bit & 1 == value]].flatten()) for value in (0, 1)]
        for name in names:
            for reader in halves[0].get(name, {}).keys() | halves[1].get(name, {}).keys():
                if reader in flooded:
                    continue
                zero, one = (half.get(name, {}).get(reader) for half in halves)
                zero, one = (torch.zeros_like(one) if zero is None else zero), one
                one = torch.zeros_like(zero) if one is None else one
                code = codes[name].setdefault(reader, torch.full((len(zero),), -1 if bit else 0))
                if (zero & one).any() or ((zero | one) != (code >= 0) if bit else torch.zeros_like(zero)).any():
                    return None
                code += one.long() << bit
                code[~(zero | one)] = -1
    return {
        name: {
            reader: (part[code[code >= 0]], (code >= 0).nonzero().flatten()) for reader, code in readers.items()
        }
        for name, readers in codes.items()
    }


def _joined(edges: list[Edges]) -> Iterator[tuple[Reader, tuple[Tensor, Tensor]]]:
    for reader in dict.fromkeys(reader for each in edges for reader in each):
        pairs = [each[reader] for each in edges if reader in each]
        yield reader, (torch.cat([runs for runs, _ in pairs]), torch.cat([channels for _, channels in pairs]))
