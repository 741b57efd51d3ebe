"""Discovery: the groups of a model of which nothing is known, found by tracing and with counters that cuts agree on."""

from __future__ import annotations

import re
from collections.abc import Hashable
from dataclasses import replace

import torch
from torch import nn

from ..architectures.group import Group, Groups
from ..running.batch import Batch
from ..running.freezing import frozen
from ..running.processes import progress
from ..tracing import trace
from ..tracing.found import FoundGroup, Trace
from .counters import Counters, NotCut, counters_of
from .samples import tiny_sample
from .streams import inputs_of
from .traced import Inexpressible, named_groups, part_of

_APART = "it lies in no list of layers, as others do: a head, say, which is small, and is kept as it is"
_NOT_UNITS = "channels that no weight writes by itself"  # a norm's scale: no one would take it for units


@torch.inference_mode(False)
def discover(model: nn.Module, sample: Batch | None = None) -> Groups:
    """Trace a model, and find out by cutting copies what must follow when units go.

    Args:
        model: any module that runs on the sample; unchanged.
        sample: a batch of one small sample; `None` makes one up.

    Returns:
        Its groups; what is left whole, with reasons, is their `left_whole`.

    Raises:
        ValueError: see `trace` and `tiny_sample`.
    """
    sample = tiny_sample(model) if sample is None else dict(sample)
    traced = trace(model, sample)
    parts, left = [], _left_out(traced)
    for found in traced.groups:
        try:
            parts.append(part_of(model, found))
        except Inexpressible as error:
            left[_place(found)] = str(error)
    named = named_groups(model, parts)
    left |= {path or "model": _APART for path in named.apart}
    members = []
    known: dict[Hashable, tuple[Counters, int] | str] = {}
    with frozen(model):
        for group in progress(named.groups, "Counting units", "group"):
            part, layer = named.parts[group.key], named.layers[group.layer]
            kind = _kind(group, part)
            if kind not in known:
                known[kind] = _counted(model, group, part, layer, sample)
            if isinstance(known[kind], str):
                left[group.key] = known[kind]
                continue
            counters, least = known[kind]
            counters = {f"{part}.{name}".removeprefix("."): amount for name, amount in counters.items()}
            members.append(replace(group, least=least, cut=replace(group.cut, counters=counters)))
        inputs = inputs_of(model, named.layers, sample)
    return Groups(tuple(members), named.layers, inputs, left, sample)


def _counted(model: nn.Module, group: Group, part: str, layer: str, sample: Batch) -> tuple[Counters, int] | str:
    """Counters with paths from the part, and the least number of units; or why there are none."""
    try:
        counters, least = counters_of(model, group, part, layer, sample)
    except NotCut as error:
        return str(error)
    return {name.removeprefix(f"{part}."): amount for name, amount in counters.items()}, least


def _kind(group: Group, part: str) -> Hashable:
    """What groups have in common that are the same sublayer of like layers."""
    blocks = (*group.cut.writes, *group.cut.reads)
    owned = tuple((each.tensor.removeprefix(f"{part}."), each.dim, each.widths, each.start) for each in blocks)
    return re.sub(r"\d+", "#", part), group.role, group.units, owned


def _place(found: FoundGroup) -> str:
    return found.module or "model"


def _left_out(traced: Trace) -> dict[str, str]:
    """Tensors that are in no group, and why, without those that nobody would look for in one."""
    owned = {part.tensor for found in traced.groups for part in (*found.writes, *found.reads)}
    return {
        ", ".join(each.tensors): each.reason
        for each in traced.left_out
        if _NOT_UNITS not in each.reason and not {name.partition("[")[0] for name in each.tensors} <= owned
    }
