"""Which index of a tensor reaches which channels, exactly, in few passes.

Indices come in runs that reach the same channels: all rows of an attention head's queries reach the head, an FFN neuron
is a run of one. Runs are told apart by binary codes, 2 log2(n) passes for n runs, which is exact where every channel
has one source. Where a channel has several (packed projections), the parts that the model itself cuts are tried by
themselves, then halves, thirds, and every second one; if no such part has channels of one source, runs are spoilt one
by one. What was found of another tensor is tried first: if indices drawn at random reach what they reached there, four
passes are enough.

All this is written as generators: they yield indices to be spoilt, and are sent what these reach.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor

from ..tainting.readers import Reader
from .kinds import Reached, code_bits, kind_of

Found = TypeVar("Found")
Asking = Generator[Tensor, Reached, Found]
"""Yields indices, is sent what each reader sees of them, and returns what was found."""

_FEW, _MANY = 16, 1024  # runs: so many are spoilt one by one at once; more than so many never
# In how many parts channels of one source are looked for, and whether a part is a block or every so-many-th run.
_PARTS = ((1, "blocks"), (2, "blocks"), (3, "blocks"), (2, "turns"), (3, "turns"))
_CUTS = 16  # places at most at which a model cuts what it can be said to read
_DRAWS = 4  # passes that confirm a relation


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

    @property
    def size(self) -> int:
        """The size of the dimension."""
        return self.runs.numel()


def alike(one: Relation, other: Relation) -> bool:
    """Whether two relations say the same, but for the numbers of layers."""

    def said(relation: Relation) -> dict[tuple, list[Tensor]]:
        edges = {(_kind(reader), "edges"): list(edge) for reader, edge in relation.links.edges.items()}
        return edges | {(_kind(reader), "whole"): [runs] for reader, runs in relation.links.whole.items()}

    left, right = said(one), said(other)
    return (
        torch.equal(one.runs, other.runs)
        and left.keys() == right.keys()
        and all(torch.equal(a, b) for key in left for a, b in zip(left[key], right[key], strict=True))
    )


def points(size: int) -> list[int]:
    """Indices that are looked at by themselves: the first, the middle and the last one."""
    return sorted({0, size // 2, size - 1})


def confirm(known: Relation, tensor: str, dim: int) -> Asking[Relation | None]:
    """The relation of a tensor whose indices reach what those of another one do, of its own readers; else `None`.

    First all is spoilt, which tells the readers. Then, in every draw, one index out of each of some runs is spoilt; so
    a run is neither a part of one that is longer, nor several of them. So many are drawn that about half of the
    channels are reached.

    Args:
        known: of the other tensor, whose dimension is as large.
        tensor: the tensor's name.
        dim: its dimension.
    """
    generator = torch.Generator().manual_seed(0)
    count, length = known.runs.shape
    reached = yield known.runs.flatten()
    chosen = {reader: _seen_by(known, reader, len(mask)) for reader, mask in reached.items()}
    if not chosen or None in chosen.values():
        return None
    share = 1 - 0.5 ** (1 / max(seen.sources for seen in chosen.values()))
    drawn = torch.ones(count, dtype=torch.bool)
    for draw in range(_DRAWS):
        if draw:
            drawn = torch.rand(count, generator=generator).argsort() < max(1, round(share * count))
            places = torch.randint(length, (int(drawn.sum()),), generator=generator)
            reached = yield known.runs[drawn.nonzero().flatten(), places]
        if not reached.keys() <= chosen.keys():
            return None
        for reader, seen in chosen.items():
            if not torch.equal(reached.get(reader, torch.zeros(seen.channels, dtype=torch.bool)), seen.of(drawn)):
                return None
    edges = {reader: seen.edges for reader, seen in chosen.items() if seen.edges is not None}
    whole = {reader: seen.whole for reader, seen in chosen.items() if seen.whole is not None}
    return Relation(tensor, dim, known.runs, Links(edges, whole))


@dataclass(frozen=True, eq=False)
class _Seen:
    """What one reader sees of runs."""

    channels: int
    edges: tuple[Tensor, Tensor] | None
    whole: Tensor | None

    def of(self, drawn: Tensor) -> Tensor:
        """Its channels that some runs reach, as a mask."""
        mask = torch.zeros(self.channels, dtype=torch.bool)
        if self.edges is not None:
            mask[self.edges[1][drawn[self.edges[0]]]] = True
        if self.whole is not None and drawn[self.whole].any():
            mask[:] = True
        return mask

    @property
    def sources(self) -> float:
        """How many runs reach a channel."""
        return 1.0 if self.edges is None else max(1.0, len(self.edges[1]) / len(self.edges[1].unique()))

    def same(self, other: _Seen) -> bool:
        pairs = zip(
            (*(self.edges or ()), *([] if self.whole is None else [self.whole])),
            (*(other.edges or ()), *([] if other.whole is None else [other.whole])),
            strict=False,
        )
        return (
            (self.edges is None) == (other.edges is None)
            and (self.whole is None) == (other.whole is None)
            and all(torch.equal(one, two) for one, two in pairs)
        )


def _seen_by(known: Relation, reader: Reader, channels: int) -> _Seen | None:
    """What a reader of a known relation sees that is like this one, or all of them if they see the same."""
    readers = list(dict.fromkeys([*known.links.edges, *known.links.whole]))
    like = [each for each in readers if _kind(each) == _kind(reader)] or readers
    seen = [_Seen(channels, known.links.edges.get(each), known.links.whole.get(each)) for each in like]
    seen = [each for each in seen if each.edges is None or int(each.edges[1].max()) < channels]
    partly = [each for each in seen if each.edges is not None]
    options = partly or seen
    if not options or not all(options[0].same(each) for each in options[1:]):
        return None
    return options[0]


def _kind(reader: Reader) -> tuple[str, int, int]:
    return kind_of(reader.tensor), reader.dim, reader.inner


def explore(
    tensor: str, dim: int, size: int, lengths: Iterable[int], cuts: Sequence[int] = ()
) -> Asking[Relation | None]:
    """What the indices of a tensor reach; `None` if that cannot be told in a reasonable number of passes.

    Args:
        tensor: its name.
        dim: the dimension.
        size: its size.
        lengths: of runs in other tensors, which are looked for first.
        cuts: where the model cuts a dimension of this size, from 0 to `size`.
    """
    alone = {}
    for point in points(size):
        alone[point] = yield torch.tensor([point])
    flooded = set.intersection(*({reader for reader, mask in each.items() if mask.all()} for each in alone.values()))
    runs = torch.arange(size).view(-1, (yield from _run_length(size, alone, lengths)))
    every = torch.arange(len(runs))
    links = yield from _one_by_one(runs, every) if len(runs) <= _FEW else _in_parts(runs, flooded, cuts, lengths)
    if links is None and len(runs) <= _MANY:
        links = yield from _one_by_one(runs, every)
    return links and Relation(tensor, dim, runs, links)


def one_run(tensor: str, dim: int, size: int, reached: Reached) -> Relation:
    """The relation of a dimension whose indices are not told apart."""
    return Relation(tensor, dim, torch.arange(size)[None], _links(torch.zeros(1, dtype=torch.long), reached))


def _run_length(size: int, alone: Mapping[int, Reached], lengths: Iterable[int]) -> Asking[int]:
    """How many indices in a row reach the same channels: measured where most are reached, and a divisor of `size`.

    Args:
        size: how many indices there are.
        alone: some indices, and what each of them reaches.
        lengths: what may well be the length.
    """
    start = max(alone, key=lambda point: (_channels(alone[point]), -point))

    def same(first: int, last: int) -> Asking[bool]:
        return _equal((yield torch.arange(first, last + 1)), alone[start])

    neighbour = start + 1 if start + 1 < size else start - 1
    if not (yield from same(min(start, neighbour), max(start, neighbour))):
        return 1
    for length in lengths if start == 0 else ():
        fits = size % length == 0 and (yield from same(0, length - 1))
        if fits and (length == size or not (yield from same(0, length))):
            return length
    last = yield from _furthest(lambda point: same(start, point), start, size - 1)
    first = start - (yield from _furthest(lambda step: same(start - step, start), 0, start))
    return math.gcd(size, first, last + 1)


def _furthest(holds, first: int, last: int) -> Asking[int]:
    """The last number up to which something holds that holds of `first`, and never again once it does not."""
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if (yield from holds(middle)) else (first, middle - 1)
    return first


def _channels(reached: Reached) -> int:
    """Channels reached, those of readers that are reached wholly left out."""
    return sum(int(mask.sum()) for mask in reached.values() if not mask.all())


def _equal(one: Reached, other: Reached) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[reader], other[reader]) for reader in one)


def _one_by_one(runs: Tensor, part: Tensor) -> Asking[Links]:
    found: list[Links] = []
    for number in part.tolist():
        found.append(_links(torch.tensor([number]), (yield runs[number])))
    return _joined(found)


def _in_parts(runs: Tensor, flooded: set[Reader], cuts: Sequence[int], lengths: Iterable[int]) -> Asking[Links | None]:
    whole = [place // runs.shape[1] for place in cuts if place % runs.shape[1] == 0]
    for parts in _partitions(len(runs), whole, lengths if runs.shape[1] == 1 else ()):
        decoded = []
        for part in parts:
            one = yield from _one_by_one(runs, part) if len(part) <= _FEW else _by_codes(runs, part, flooded)
            if one is None:
                break
            decoded.append(one)
        else:
            return _joined(decoded)
    return None


def _partitions(count: int, cuts: Sequence[int], lengths: Iterable[int]) -> Iterator[list[Tensor]]:
    """Runs in parts, in each of which channels may have one source."""
    numbers = torch.arange(count)
    if 2 < len(cuts) <= _CUTS:
        yield [numbers[start:end] for start, end in pairwise(cuts)]
    for parts, form in _PARTS:
        if count % parts == 0:
            yield list(numbers.view(parts, -1) if form == "blocks" else numbers.view(-1, parts).T)
    for length in lengths:  # rotary positions mix the first half of each head with the second
        if count % length == 0 and length % 2 == 0:
            yield [half.flatten() for half in numbers.view(-1, length).chunk(2, 1)]


def _by_codes(runs: Tensor, part: Tensor, flooded: set[Reader]) -> Asking[Links | None]:
    """What some runs reach, if every channel is reached by one of them at most; otherwise `None`."""
    places = torch.arange(len(part))
    codes: dict[Reader, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    whole: dict[Reader, Tensor] = {}
    bits = code_bits(len(part))
    for bit in range(bits):
        halves = []
        for value in (0, 1):
            halves.append((yield runs[part[places >> bit & 1 == value]].flatten()))
        for reader in halves[0].keys() | halves[1].keys():
            if reader in flooded:
                whole[reader] = part
                continue
            some = next(half[reader] for half in halves if reader in half)
            zero, one = (half.get(reader, torch.zeros_like(some)) for half in halves)
            if (zero & one).any():
                return None
            codes[reader].append((zero, one))
    edges: dict[Reader, tuple[Tensor, Tensor]] = {}
    for reader, pairs in codes.items():
        reached = [zero | one for zero, one in pairs]
        if len(pairs) < bits or any(not torch.equal(each, reached[0]) for each in reached):
            return None  # which is reached depends on what else is spoilt
        numbers = sum(one.long() << bit for bit, (_, one) in enumerate(pairs))
        channels = reached[0].nonzero().flatten()
        if len(channels) == len(numbers) and (numbers == numbers[0]).all():
            whole[reader] = part[numbers[:1]]
        else:
            edges[reader] = part[numbers[channels]], channels
    return Links(edges, whole)


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
