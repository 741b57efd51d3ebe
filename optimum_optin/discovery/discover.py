"""Discovery: the groups of a model of which nothing is known, found by tracing and with counters that cuts agree on."""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from ..architectures.group import HEADS, Blocks, Cut, Group, Groups
from ..counting.biases import bias_arguments, together
from ..counting.caches import counted_by_caches
from ..counting.counters import Counters, NotCut, counters_of
from ..counting.coupling import coupled
from ..counting.skips import with_skips
from ..keeping.doors import keeping
from ..running.batch import Batch
from ..running.freezing import frozen, kept_buffers
from ..running.memory import is_out_of_memory
from ..stages.progress import progress
from ..tracing import trace
from ..tracing.found import STREAM, FoundGroup, Slice, Trace
from .convolutions import maps_of, with_norms
from .pooled import pooled_readers
from .samples import checked_sample, tiny_sample
from .silent import silent_weights
from .streams import inputs_of
from .traced import Inexpressible, Named, Part, named_groups, part_of

_POOLED = "it runs once for each sample, and not for every token or place: a pooler, say, which costs little"
_FRONT = "it is a convolution of the front end that makes tokens of a sound, which is left whole"
_NOT_UNITS = "channels that no weight writes by itself"  # a norm's scale: no one would take it for units


@keeping("model")
@torch.inference_mode(False)
def discover(model: nn.Module, sample: Batch | None = None) -> Groups:
    """Trace a model, and find out by cutting copies what must follow when units go.

    Args:
        model: any module that runs on the sample; unchanged.
        sample: a batch of one small sample; `None` makes one up.

    Returns:
        Its groups; what is left whole, with reasons, is their `left_whole`.

    Raises:
        ValueError: the model cannot be copied; or see `trace`, `tiny_sample` and `checked_sample`.
        MemoryError: says what tracing needs.
    """
    _check_copyable(model)
    with frozen(model), kept_buffers(model):
        sample = tiny_sample(model) if sample is None else checked_sample(model, sample)
        traced = _traced(model, sample)
        counting = _Counting(model, sample)
        found = list(traced.groups)
        members, left, layers, uncut = counting.groups_of(found)
        if uncut:  # layers that cannot pick their own heads from a bias of all lose the same ones
            found = _joined(found, [each for each in found if uncut & _tables(each)])
            members, left, layers, _ = counting.groups_of(found)
        if same := {frozenset(part.tensor for part in group.cut.reads) for group in coupled(model, members, sample)}:
            found = _joined(found, [each for each in found if frozenset(part.tensor for part in each.reads) in same])
            members, left, layers, _ = counting.groups_of(found)
        inputs = inputs_of(model, layers, sample)
        members = counted_by_caches(model, with_skips(model, members, layers, sample), sample)
        members, maps = with_norms(model, members, sample), maps_of(model, layers, sample)
    left = {**_left_out(traced, layers), **left, **silent_weights(model, traced, layers)}
    return Groups(tuple(members), layers, inputs, left, sample, maps)


class _Counting:
    """Names groups and counts their units, once for each kind of group.

    Args:
        model: the model, frozen.
        sample: its inputs.
    """

    def __init__(self, model: nn.Module, sample: Batch) -> None:
        self._model, self._sample = model, sample
        self._known: dict[Hashable, _Counted | str] = {}
        self._pooled = pooled_readers(model, sample)

    def groups_of(
        self, found: Iterable[FoundGroup]
    ) -> tuple[list[Group], dict[str, str], Mapping[str, str], frozenset[str]]:
        """Groups, what is left whole with reasons, the layers, and tables that layers cannot share if they are cut."""
        parts, left = [], {}
        for each in found:
            try:
                parts.append(part_of(self._model, each))
            except Inexpressible as error:
                left[_writers(each.writes)] = str(error)
        named = named_groups(self._model, parts, self._pooled)
        members, uncut = self._counted_of(named)
        if _take_names(named, uncut):  # of what can be cut: a last head's channels are neurons, too
            named = named_groups(self._model, parts, self._pooled, [named.parts[key] for key in uncut])
            members, uncut = self._counted_of(named)
        left |= {_writers(part.cut.writes): _POOLED for part in named.pooled}
        left |= {_writers(part.cut.writes): _FRONT for part in named.front}
        tables = {table for key in uncut for table in named.parts[key].tables}
        return members, left | uncut, named.layers, frozenset(tables)

    def _counted_of(self, named: Named) -> tuple[list[Group], dict[str, str]]:
        """The groups that can be cut, with counters, and the keys of the others with reasons."""
        members, uncut = [], {}
        for group in progress(named.groups, "Counting units", "group"):
            part, layer = named.parts[group.key], named.layers[group.layer]
            counted = self._counted(group, part, layer)
            if isinstance(counted, str):
                uncut[group.key] = counted
            else:
                members.append(counted.of(group, part, layer))
        return members, uncut

    def _counted(self, group: Group, part: Part, layer: str) -> _Counted | str:
        kind = _kind(group, part)
        if kind not in self._known:
            self._known[kind] = self._count(group, part, layer)
        return self._known[kind]

    def _count(self, group: Group, part: Part, layer: str) -> _Counted | str:
        problem = (
            f"{' and '.join(part.tables)} holds what all layers add for each head, and none is handed it by itself"
        )
        for bias, cut in self._ways(group, part, layer):
            trial = replace(group, cut=replace(cut, shared_bias=bias))
            try:
                counters, least = counters_of(self._model, trial, part.path, layer, self._sample)
            except NotCut as error:
                problem = problem if bias and not part.tables else str(error)
                continue
            inside = {name.removeprefix(f"{part.path}."): amount for name, amount in counters.items()}
            return _Counted(inside, least, bias and bias.removeprefix(f"{layer}."), cut is part.cut)
        return problem

    def _ways(self, group: Group, part: Part, layer: str) -> Iterator[tuple[str | None, Cut]]:
        """Arguments that may carry a bias of all heads, first none where no table is one, with what is sliced then."""
        cuts = [cut for cut in (part.cut, part.otherwise) if cut is not None]
        if not part.tables:
            yield from ((None, cut) for cut in cuts)
        if part.tables or group.role == HEADS:
            yield from itertools.product(bias_arguments(self._model, layer, group.units, self._sample), cuts)


def _traced(model: nn.Module, sample: Batch) -> Trace:
    try:
        return trace(model, sample)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        weights = sum(each.numel() * each.element_size() for each in model.parameters()) / 1e9
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in sample.items())
        raise MemoryError(
            f"{type(model).__name__} is too large to be traced in this memory ({error}). Beside {weights:.2f} GB of "
            "weights, tracing holds what every contraction reads and writes in a pass of one sample, and a spoilt "
            f"copy of that: the sample here is {shapes}. Give a smaller one (find_groups(model, sample)), or trace it "
            "where there is more memory, in bfloat16 if need be."
        ) from error


def _check_copyable(model: nn.Module) -> None:
    """Raise if there can be no copy of a model to cut."""
    if missing := [name for name, each in model.named_parameters() if each.is_meta]:
        raise ValueError(f"{missing[0]} is on the meta device, without values: load the model's weights first.")
    try:
        copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
    except Exception as error:  # whatever modules may hold
        raise ValueError(
            f"{type(model).__name__} cannot be copied, and what is to be pruned is proved on copies "
            f"({type(error).__name__}: {error}). If a weight is computed from others, remove norms and masks of "
            "weights first (torch.nn.utils.remove_weight_norm, torch.nn.utils.prune.remove)."
        ) from error


@dataclass(frozen=True)
class _Counted:
    """What was found out about groups of one kind.

    Args:
        counters: with paths from the group's module.
        least: how few units may stay.
        bias: the argument with the bias of all heads, with its path from the layer.
        as_first: whether it is `Part.cut` that was proved, and not `Part.otherwise`.
    """

    counters: Counters
    least: int
    bias: str | None
    as_first: bool

    def of(self, group: Group, part: Part, layer: str) -> Group:
        """A group of this kind with what was found out."""
        counters = {f"{part.path}.{name}".removeprefix("."): amount for name, amount in self.counters.items()}
        bias = self.bias and f"{layer}.{self.bias}"
        cut = part.cut if self.as_first else part.otherwise
        return replace(group, least=self.least, cut=replace(cut, counters=counters, shared_bias=bias))


def _take_names(named: Named, uncut: Collection[str]) -> bool:
    """Whether groups that cannot be cut have the plain name of a role of which their layer has others that can."""
    plain = {(group.layer, group.role) for group in named.groups if group.key in uncut}
    others = [group for group in named.groups if group.key not in uncut]
    return any(group.layer == layer and group.role.endswith(f"_{role}") for group in others for layer, role in plain)


def _joined(found: Iterable[FoundGroup], alike: Sequence[FoundGroup]) -> list[FoundGroup]:
    """Groups, some of which become one."""
    return [*(each for each in found if not any(each is other for other in alike)), *together(alike)]


def _tables(found: FoundGroup) -> frozenset[str]:
    return frozenset(part.tensor for part in found.shared)


def _kind(group: Group, part: Part) -> Hashable:
    """What groups have in common that are the same sublayer of like layers."""
    blocks = (*group.cut.writes, *group.cut.reads)
    owned = tuple((each.tensor.removeprefix(f"{part.path}."), each.dim, each.widths, each.start) for each in blocks)
    return re.sub(r"\d+", "#", part.path), group.role, group.units, owned, part.tables


def _writers(parts: Iterable[Slice | Blocks]) -> str:
    """What to call units that have no name: the modules that write them."""
    return ", ".join(dict.fromkeys(part.tensor.rpartition(".")[0] or part.tensor for part in parts))


def _left_out(traced: Trace, layers: Mapping[str, str]) -> dict[str, str]:
    """Tensors that are in no group, and why, without those that nobody would look for in one."""
    owned = {part.tensor for found in traced.groups for part in (*found.writes, *found.reads, *found.shared)}
    left = {}
    for each in traced.left_out:
        names = {name.partition("[")[0] for name in each.tensors}
        inside = any(name.startswith(f"{path}.") for name in names for path in layers.values())
        # Embeddings, and what else writes or reads the stream that the layers share, have no units of their own.
        told = names <= owned or _NOT_UNITS in each.reason or (layers and not inside and STREAM in each.reason)
        if not told:
            left[", ".join(each.tensors)] = each.reason
    return left
