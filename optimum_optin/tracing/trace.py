"""Groups of removable units of any model, found by taint: nothing is known of its architecture.

NaN is put into some indices of one dimension of a tensor, and a tiny sample is run: which input channels of which
linear or convolution are NaN tells what these indices feed. Behind a normalisation over channels all are, and that says
nothing. What is found is not proved yet: cutting may need attributes that tracing does not know, or be impossible.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..tainting.passes import Passes, watched
from ..tainting.readers import Reader
from .cache import cached
from .found import STREAM, LeftOut, Trace
from .kinds import Reached, kind_of, kinds_of
from .relations import Asking, Relation, alike, confirm, explore, one_run, points
from .schedule import NAN, NOISE, Question, Spoil, ask, by
from .siblings import groups_of_siblings
from .units import UNWRITTEN, groups_of, partly_read

_UNSEEN = "the inputs that it is multiplied with are not looked at, as it goes through {!r} first"
_UNSTEADY = "its passes differ from each other, so that operations that swallow NaN were not looked for"
_FLOODS = f"each index reaches all channels of what reads it, such as {{}}: {STREAM}"
_NO_ORDER = "which index reaches which channels follows no order that was tried"
_TRIED = 3  # known relations that are tried before a tensor is explored


def trace(model: nn.Module, inputs: Mapping[str, Tensor]) -> Trace:
    """Find a model's groups of removable units; of like models (`cache.py`), the first in a process is run.

    Args:
        model: any module; it runs in evaluation mode, is never written to, and is as before afterwards.
        inputs: one tiny sample, name of an argument of `forward` -> tensor, on the model's device.

    Raises:
        ValueError: weights without values, a sample that gives NaN.
    """
    return cached(model, inputs, lambda: _trace(model, inputs))


def _trace(model: nn.Module, inputs: Mapping[str, Tensor]) -> Trace:
    with watched(model, inputs) as passes:
        search = _Search(passes)
        kinds = kinds_of(passes.tensors.by_name)
        # Scales and biases alone make no unit: they are asked only which channels that a weight writes they reach.
        search.add([names for names in kinds if passes.tensors.by_name[names[0]].dim() > 1])
        written = partly_read(search.relations)
        search.add([names for names in kinds if passes.tensors.by_name[names[0]].dim() == 1], written)
        found, left = groups_of(sorted(search.relations, key=_place_in(passes.tensors.by_name)), passes)
        found += groups_of_siblings(model, found, passes.tensors, passes.used)
        if not passes.steady:
            search.left_out.append(LeftOut((type(model).__name__,), _UNSTEADY))
        unseen = [LeftOut((name,), _UNSEEN.format(operation)) for name, operation in passes.unseen().items()]
        unread = tuple(name for name in passes.tensors.by_name if name not in passes.used)
    return Trace(tuple(found), (*search.left_out, *left, *unseen), passes.count, unread)


def _place_in(tensors: Mapping[str, Tensor]) -> Callable[[Relation], tuple[bool, int]]:
    """A relation's place, in the order of the model's tensors, weights before scales and biases."""
    order = {name: place for place, name in enumerate(tensors)}
    return lambda relation: (tensors[relation.tensor].dim() == 1, order[relation.tensor])


class _Search:
    """What was found so far, and what could not be told.

    Args:
        passes: of the model.
    """

    def __init__(self, passes: Passes) -> None:
        self._passes = passes
        self.relations: list[Relation] = []
        self.left_out: list[LeftOut] = []
        self._lengths: list[int] = []

    def add(self, kinds: Iterable[tuple[str, ...]], written: set[Reader] | None = None) -> None:
        """Trace every dimension of like tensors; with `written`, only what reaches a part of one of these readers."""
        probes = []
        for names in kinds:
            for dim, size in enumerate(self._passes.tensors.by_name[names[0]].shape):
                readers = self._passes.readers_of(names)
                if size > 1 and readers and not all(self._passes.sums_over(name, dim) for name in names):
                    probes.append(Question(names, dim, readers, lambda size=size: _probe(size)))
        ask(self._passes, probes)
        self._ask_again(probes)
        explored = [each for probe in probes for each in self._explorations(probe, written)]
        ask(self._passes, explored)
        for each in explored:
            if each.error is not None or each.answer is None:
                self._leave_out(each, each.error or _NO_ORDER)

    def _ask_again(self, probes: Iterable[Question]) -> None:
        """Probe by noise alone what NaN stops the model at."""
        failed = [(probe, probe.error) for probe in probes if probe.error is not None]
        for probe, _ in failed:
            size = self._passes.tensors.by_name[probe.names[0]].shape[probe.dim]
            probe.begin, probe.error = (lambda size=size: _probe(size, (NOISE,))), None
        if failed and self._passes.steady:
            ask(self._passes, [probe for probe, _ in failed])
        for probe, error in failed:
            if probe.error is not None or probe.answer is None:
                probe.error = error

    def _explorations(self, probe: Question, written: set[Reader] | None) -> list[Question]:
        if probe.error is not None:
            self._leave_out(probe, probe.error)
            return []
        partial, flooded, taints = probe.answer
        if not partial:
            if flooded and not all(map(self._passes.is_plain, probe.names)):
                self._leave_out(probe, _FLOODS.format(min(reader.tensor for reader in flooded)))
            return []
        if written is not None and not partial & written:
            self._leave_out(probe, UNWRITTEN)
            return []
        bits = self._passes.bits_of(partial)
        size = self._passes.tensors.by_name[probe.names[0]].shape[probe.dim]
        return [
            Question(
                (name,),
                probe.dim,
                readers,
                lambda name=name: by(taints, self._relation(name, probe.dim, size, flooded)),
            )
            for name in probe.names
            if (readers := self._passes.readers_of([name])) & bits
        ]

    def _relation(self, name: str, dim: int, size: int, flooded: set[Reader]) -> Asking[Relation | None]:
        """What a tensor reaches: what a like one does, if that can be confirmed.

        Where an index reaches all of one of the `flooded` readers, none can be cut, and they are not told apart.
        """
        alone = (yield torch.tensor([size // 2])) if flooded else {}
        if flooded & {reader for reader, mask in alone.items() if mask.all()}:
            found = one_run(name, dim, size, (yield torch.arange(size)))
            self.relations.append(found)
            return found
        found = None
        for known in self._like(name, dim, size):
            found = yield from confirm(known, name, dim)
            if found is not None:
                break
        if found is None:
            found = yield from explore(name, dim, size, list(self._lengths), self._passes.cuts(size))
        if found is not None:
            self.relations.append(found)
            length = found.runs.shape[1]
            if length > 1:
                self._lengths = [length, *(each for each in self._lengths if each != length)]
        return found

    def _like(self, name: str, dim: int, size: int) -> list[Relation]:
        """Known relations of dimensions of the same size, those of like tensors first, no two alike."""
        known = [each for each in reversed(self.relations) if each.size == size and len(each.runs) > 1]
        kind = kind_of(name)
        known.sort(key=lambda each: (kind_of(each.tensor), each.dim) != (kind, dim))
        chosen: list[Relation] = []
        for each in known:
            if len(chosen) < _TRIED and not any(alike(each, other) for other in chosen):
                chosen.append(each)
        return chosen

    def _leave_out(self, question: Question, reason: str) -> None:
        self.left_out.append(LeftOut(tuple(f"{name}[{question.dim}]" for name in question.names), reason))


class _Probed(NamedTuple):
    """What single indices reach.

    Args:
        partial: readers of which one of them reaches a part.
        flooded: those of which each of them reaches all, and no part of another dimension of the weight.
        taints: by what to look for what is reached.
    """

    partial: set[Reader]
    flooded: set[Reader]
    taints: Sequence[bool]


def _probe(size: int, taints: Sequence[bool] = (NAN,)) -> Generator[Spoil, Reached, _Probed]:
    """Look at single indices. Where noise reaches what NaN does not, an operation swallows NaN, and both are taken."""
    alone = yield from by(taints, _alone(size))
    if NOISE not in taints:
        loud = yield Spoil(torch.tensor([size // 2]), NOISE)
        quiet = alone[size // 2]
        if any(reader not in quiet or (mask & ~quiet[reader]).any() for reader, mask in loud.items()):
            taints = (NAN, NOISE)
            alone = yield from by(taints, _alone(size))
    seen = [(reader, bool(mask.all())) for reached in alone.values() for reader, mask in reached.items()]
    partial = {reader for reader, is_whole in seen if not is_whole}
    whole = Counter(reader for reader, is_whole in seen if is_whole)
    tensors = {reader.tensor for reader in partial}
    flooded = {reader for reader, count in whole.items() if count == len(alone) and reader.tensor not in tensors}
    return _Probed({reader for reader in partial if not reader.is_output}, flooded, taints)


def _alone(size: int) -> Asking[dict[int, Reached]]:
    found = {}
    for point in points(size):
        found[point] = yield torch.tensor([point])
    return found
