"""Groups of removable units of any model, found by taint: nothing is known of its architecture.

NaN is put into some indices of one dimension of a tensor, and a tiny sample is run: which input channels of which
linear or convolution are NaN tells what these indices feed. Behind a normalisation over channels all are, and that says
nothing. What is found is not proved yet: cutting may need attributes that tracing does not know, or be impossible.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..running.processes import progress
from .barriers import Reader
from .found import LeftOut, Trace
from .kinds import Reached, apart, kinds_of, readers_by_name
from .passes import Passes, Untraceable, watched
from .relations import Measure, Relation, points, relations
from .units import groups_of, partly_read

_UNSEEN = "the inputs that it is multiplied with are not looked at, as it goes through {!r} first"
_UNSTEADY = "its passes differ from each other, so that operations that swallow NaN were not looked for"


def trace(model: nn.Module, inputs: Mapping[str, Tensor]) -> Trace:
    """Find a model's groups of removable units.

    Args:
        model: any module; it runs in evaluation mode, is never written to, and is as before afterwards.
        inputs: one tiny sample, name of an argument of `forward` -> tensor, on the model's device.

    Raises:
        ValueError: weights without values, a forward pass that writes to the model, a sample that gives NaN.
    """
    with watched(model, inputs) as passes:
        search = _Search(passes)
        kinds = kinds_of(passes.tensors.by_name)
        # Scales and biases alone make no unit: they are asked only which channels that a weight writes they reach.
        weights = [names for names in kinds if passes.tensors.by_name[names[0]].dim() > 1]
        for names in progress(weights, "Tracing weights", "kind"):
            search.add(names)
        written = partly_read(search.relations)
        others = [names for names in kinds if passes.tensors.by_name[names[0]].dim() == 1]
        for names in progress(others, "Tracing biases", "kind"):
            search.add(names, written)
        found, left = groups_of(search.relations, passes.readers)
        if not passes.steady:
            search.left_out.append(LeftOut((type(model).__name__,), _UNSTEADY))
        unseen = [LeftOut((name,), _UNSEEN.format(operation)) for name, operation in passes.unseen().items()]
    return Trace(tuple(found), (*search.left_out, *left, *unseen), passes.count)


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
        self._known: dict[tuple, Reached] = {}

    def add(self, names: tuple[str, ...], written: set[Reader] | None = None) -> None:
        """Trace every dimension of like tensors; with `written`, only what reaches a part of one of these readers."""
        for dim, size in enumerate(self._passes.tensors.by_name[names[0]].shape):
            if size < 2 or all(self._passes.sums_over(name, dim) for name in names):
                continue
            try:
                self._add_dimension(names, dim, size, written)
            except Untraceable as error:
                self._leave_out(names, dim, str(error))

    def _add_dimension(self, names: tuple[str, ...], dim: int, size: int, written: set[Reader] | None) -> None:
        self._known.clear()
        probes = {point: self._reach(names, dim, torch.tensor([point])) for point in points(size)}
        self._compare_with_noise(names, dim, size // 2, probes[size // 2])
        partial = {reader for reached in probes.values() for reader, mask in reached.items() if not mask.all()}
        partial = {reader for reader in partial if not reader.is_output}
        if not partial:
            return
        if written is not None and not partial & written:
            self._leave_out(names, dim, "it scales or shifts channels that no weight writes by itself")
            return
        every = torch.arange(size)
        owners = apart(readers_by_name(names, lambda chosen: self._reach(chosen, dim, every)))
        for owner in owners:
            own = list(dict.fromkeys(owner.values()))
            found = relations(self._measure(owner, dim), own, dim, size, self._lengths)
            if found is None:
                self._leave_out(own, dim, "which index reaches which channels follows no order that was tried")
                continue
            self.relations += found
            length = found[0].runs.shape[1]
            if length > 1:
                self._lengths = [length, *(each for each in self._lengths if each != length)]

    def _measure(self, owner: Mapping[Reader, str], dim: int) -> Measure:
        names = list(dict.fromkeys(owner.values()))

        def measure(index: Tensor) -> Mapping[str, Reached]:
            reached: dict[str, dict[Reader, Tensor]] = {name: {} for name in names}
            for reader, mask in self._reach(names, dim, index).items():
                if reader not in owner:
                    raise Untraceable(f"what runs depends on values: {reader.tensor} is reached now and then")
                reached[owner[reader]][reader] = mask
            return reached

        return measure

    def _compare_with_noise(self, names: tuple[str, ...], dim: int, point: int, reached: Reached) -> None:
        """Name what lets a large change through, but no NaN."""
        for reader, mask in self._reach(names, dim, torch.tensor([point]), noise=True).items():
            if reader not in reached or (mask & ~reached[reader]).any():
                reason = (
                    f"more of {reader.tensor} changes with it than NaN arrives at: an operation before swallows NaN, "
                    "or what runs depends on values; what it reaches cannot be told"
                )
                self._leave_out(names, dim, reason)
                return

    def _reach(self, names: Iterable[str], dim: int, index: Tensor, noise: bool = False) -> Reached:
        names = tuple(names)
        spoilt = {name: (dim, index.to(self._passes.device)) for name in names}
        key = (names, int(index[0]), noise) if len(index) == 1 else None  # single indices are asked for again
        if key is None:
            return self._passes.reach(spoilt, noise)
        if key not in self._known:
            self._known[key] = self._passes.reach(spoilt, noise)
        return self._known[key]

    def _leave_out(self, names: Iterable[str], dim: int, reason: str) -> None:
        self.left_out.append(LeftOut(tuple(f"{name}[{dim}]" for name in names), reason))
