"""Timetable: what units take of a model's time, measured on this machine.

Whole models are timed in which all groups of one kind keep a few units, each in turn with the dense one, so that caches
and memory are as busy as they will be. What one sublayer takes is the difference, by the number of groups.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import HEADS, NEURONS, QUERY_HEADS, Group, Groups, Masks
from ..editing.surgery import rewrite
from ..keeping.doors import keeping
from ..running.batch import Batch
from ..running.freezing import frozen
from ..running.prepared import copy_of
from ..stages.progress import progress
from ..timing.backends import Run, runner
from ..timing.ratios import Ratio, ratio_of
from .kinds import Kind, kinds_of, masks_at
from .macs import total_cost
from .overlaps import apart, joined
from .stairs import Stairs

_POINTS = 8  # parts of all units that are measured, of a kind
_ALIGNMENTS = (1, 2, 4, 8, 16, 32, 64)
_LEAST_SAVED = 1e-3  # of the dense time, by half of the units of overlapping groups: a price is above 0
_WORTH = 0.5  # of the time that MACs save at half, the least that a cut to fewer saves for its MACs
_SLOWER = 0.02  # than a width that is aligned, at least, for a width to count as slow


@dataclass(frozen=True)
class Timetable:
    """Measured times of a model.

    Args:
        seconds: median time of a pass of the dense model.
        stairs: for each kind of groups that do not overlap.
        saved: share of the dense time that every other unit of the overlapping groups saves; 0 without any.
        multiple: of the overlapping groups, see `Stairs`.
        noise: the largest error of a share.
    """

    seconds: float
    stairs: tuple[Stairs, ...]
    saved: float
    multiple: int
    noise: float

    def tables(self) -> dict[str, Tensor]:
        """Group key -> seconds of keeping n units, float64, shape (units + 1,), of groups that do not overlap."""
        return {key: each.table() * self.seconds for each in self.stairs for key in each.groups}

    def to_dict(self) -> dict[str, Any]:
        """All fields, as a dict that `json` can write."""
        return {**vars(self), "stairs": [each.to_dict() for each in self.stairs]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Timetable:
        """The timetable with these fields."""
        return cls(**{**fields, "stairs": tuple(Stairs.from_dict(each) for each in fields["stairs"])})


@keeping("model")
def measure(model: nn.Module, groups: Groups, tokens: int, batch: Batch, backend: str) -> Timetable:
    """Time a model on this machine.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        tokens: that MACs are counted at, see `cost_tables`.
        batch: what to time it on.
        backend: see `timing.backends.runner`.
    """
    kinds = kinds_of(model, apart(groups))
    with torch.no_grad(), frozen(model):
        cuts = Cuts(model, batch, backend)
        todo = [(kind, units) for kind in kinds for units in _numbers(kind, len(kinds))]
        found = {}
        for kind, units in progress(todo, "time of cut models", "model"):
            found[kind[0].key, units] = cuts.against_dense(kind, masks_at(kind, units))
        stairs = [
            _stairs(kind, {units: ratio for (key, units), ratio in found.items() if key == kind[0].key}, cuts)
            for kind in kinds
        ]
        saved, multiple = 0.0, 1
        overlapped = joined(groups)
        if len(overlapped):
            ratio = cuts.against_dense(overlapped, {group.key: group.every_other() for group in overlapped})
            saved = max(1 - ratio.value, _LEAST_SAVED)
            multiple = _joined_multiple(overlapped, cuts, tokens, saved)
        return Timetable(cuts.seconds(), tuple(stairs), saved, multiple, cuts.noise())


@keeping("model")
def time_of(model: nn.Module, groups: Groups, masks: Masks, batch: Batch, backend: str) -> Ratio:
    """The time of a cut model as a part of the dense one's; see `measure`.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        masks: what is kept.
        batch: what to time it on.
        backend: see `timing.backends.runner`.
    """
    with torch.no_grad(), frozen(model):
        return Cuts(model, batch, backend).against_dense(groups, masks)


class Cuts:
    """Cut copies of a model, timed against it.

    Args:
        model: the dense model, frozen; unchanged.
        batch: what to time them on.
        backend: see `timing.backends.runner`.
    """

    def __init__(self, model: nn.Module, batch: Batch, backend: str):
        self.model, self.batch, self.backend = model, batch, backend
        self._dense = runner(model if backend == "eager" else copy_of(model, apart=False), batch, backend)
        self._ratios: list[Ratio] = []

    def against_dense(self, groups: Sequence[Group], masks: Masks) -> Ratio:
        """The time of a model without some units, as a part of the dense one's."""
        ratio = ratio_of(self._run(groups, masks), self._dense)
        self._ratios.append(ratio)
        return ratio

    def against(self, groups: Sequence[Group], masks: Masks, other: Masks) -> Ratio:
        """The time of a model without some units, as a part of that of one without others."""
        return ratio_of(self._run(groups, masks), self._run(groups, other))

    def seconds(self) -> float:
        """The dense model's time, the median over all cuts that it was compared with."""
        return statistics.median(each.base_seconds for each in self._ratios)

    def noise(self) -> float:
        """The largest error of any cut's part of the dense time."""
        return max(each.error for each in self._ratios)

    def _run(self, groups: Sequence[Group], masks: Masks) -> Run:
        copied = copy_of(self.model, apart=False)
        rewrite(copied, groups, masks)
        return runner(copied, self.batch, self.backend)


def _numbers(kind: Kind, kinds: int) -> list[int]:
    """How many units to measure a kind with, but for all of them; fewer where there are many kinds."""
    group = kind[0]
    step = max(group.multiple, group.parts)
    whole = group.role != QUERY_HEADS and group.role.endswith((HEADS, NEURONS))  # it may go
    least = 0 if whole else max(group.least, group.parts)
    points = _POINTS if kinds <= 4 else _POINTS // 2
    inside = group.units // step
    aligned = 64 if inside >= 16 * 64 else 16 if inside >= 16 * 16 else 1
    parts = {round(inside * part / points / aligned) * aligned for part in range(1, points)}
    found = {min(max(part * step, least), group.units) for part in {*parts, 1}} | {least}
    return sorted(found - {group.units})


def _stairs(kind: Kind, ratios: Mapping[int, Ratio], cuts: Cuts) -> Stairs:
    group = kind[0]
    units = [*ratios, group.units]
    times = [*(each.value for each in ratios.values()), 1.0]
    if units[0]:  # it cannot lose all: what none would take lies on the line through the least
        slope = (times[1] - times[0]) / (units[1] - units[0])
        units, times = [0, *units], [times[0] - slope * units[0], *times]
    shares = tuple(time - times[0] for time in times)
    keys = tuple(each.key for each in kind)
    return Stairs(keys, tuple(units), shares, _multiple(kind, units, cuts))


def _multiple(kind: Kind, measured: Sequence[int], cuts: Cuts) -> int:
    """The smallest number that widths have to be a multiple of so as not to be slower than wider ones."""
    group = kind[0]
    aligned = [units for units in measured if units and units % (group.parts * _ALIGNMENTS[-1]) == 0]
    middle = next((units for units in aligned if units >= group.units // 2), None)
    if middle is None:  # heads, and narrow models
        return 1

    def is_slow(less: int) -> bool:
        ratio = cuts.against(kind, masks_at(kind, middle - less * group.parts), masks_at(kind, middle))
        return ratio.value - 1 > max(_SLOWER, 2 * ratio.error)

    alignment = next((each for each in _ALIGNMENTS if not is_slow(each)), _ALIGNMENTS[-1])
    return alignment * group.parts if alignment > 1 else 1


def _joined_multiple(groups: Groups, cuts: Cuts, tokens: int, at_half: float) -> int:
    """The smallest number that widths of overlapping groups have to be a multiple of to save time as they save MACs.

    Args:
        groups: the groups.
        cuts: of the model.
        tokens: see `cost_tables`.
        at_half: share of the time that a cut to half saves.
    """
    dense = total_cost(cuts.model, groups, tokens)

    def gone(masks: Masks) -> float:
        return 1 - total_cost(cuts.model, groups, tokens, None, masks) / dense

    worth = at_half / gone({group.key: group.every_other() for group in groups})  # time for MACs
    most = min(group.units // group.parts for group in groups) // 2
    for alignment in (each for each in _ALIGNMENTS if each < most):
        masks = {group.key: group.first(group.units - alignment * group.parts) for group in groups}
        ratio = cuts.against_dense(groups, masks)
        if 1 - ratio.value + 2 * ratio.error > _WORTH * worth * gone(masks):
            return alignment
    return max(each for each in _ALIGNMENTS if each <= max(most, 1))
