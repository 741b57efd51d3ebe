"""Query heads of grouped-query attention as units: each KV head keeps equally many, and all KV heads stay."""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterator
from dataclasses import replace

import torch
from torch import nn

from ..architectures.group import HEADS, QUERY_HEADS, Blocks, Consumer, Group, Groups
from ..models.identity import in_words
from ..running.batch import Batch
from ..running.facts import measured_once
from ..running.forward import takes
from ..running.freezing import frozen, kept_buffers
from ..tracing.units import common_module
from .counters import Counters, NotCut, counters_of


def by_query_heads(model: nn.Module, groups: Groups) -> Groups:
    """Groups in which heads that are a KV head with its queries are split into these, where a cut proves it possible.

    A module goes by one number of queries for each KV head, so each keeps equally many; which, is free.

    Args:
        model: the model, unchanged.
        groups: its groups, as they were traced.

    Raises:
        ValueError: in no layer do several query heads share a KV head, or none of them can go by itself.
    """
    keys = tuple(group.key for group in groups)
    members = measured_once(model, ("query heads", keys), lambda: tuple(_split(model, groups)))
    if members == groups.members:
        raise ValueError(
            f"gqa_units='query_heads' is for models in which several query heads share a KV head, and can be cut by "
            f"themselves; of this {in_words(model)} no layer is known to be so. Take gqa_units='kv_heads'."
        )
    return replace(groups, members=members)


def _split(model: nn.Module, groups: Groups) -> Iterator[Group]:
    known: dict[Hashable, tuple[Counters, int] | None] = {}
    sample = _with_mask(model, groups.sample)
    with frozen(model), kept_buffers(model):
        for group in groups:
            queries = None if sample is None else _queries_of(group)
            if queries is None:
                yield group
                continue
            part = common_module([each.tensor for each in (*group.cut.writes, *group.cut.reads)])
            kind = re.sub(r"\d+", "#", part), queries.role, queries.units, queries.width
            if kind not in known:
                try:
                    counters, least = counters_of(model, queries, part, groups.layers[group.layer], sample)
                    known[kind] = {name.removeprefix(f"{part}."): each for name, each in counters.items()}, least
                except NotCut:
                    known[kind] = None
            if known[kind] is None:
                yield group
                continue
            counters, least = known[kind]
            inside = {f"{part}.{name}": amount for name, amount in counters.items()}
            yield replace(queries, least=least, cut=replace(queries.cut, counters=inside))


def _with_mask(model: nn.Module, sample: Batch | None) -> Batch | None:
    """A sample of which a token is padding: without a mask, kernels find out how many queries there are."""
    if sample is None or "input_ids" not in sample or not takes(model, "attention_mask"):
        return sample
    mask = torch.ones_like(sample["input_ids"])
    mask[:, 1] = 0
    return {**sample, "attention_mask": mask}


def _queries_of(group: Group) -> Group | None:
    """The query heads of a group of KV heads, without counters; `None` if there is one for each, or nobody can tell."""
    widths = {width for part in group.cut.writes for width in part.widths if width > 1}
    if not group.role.endswith(HEADS) or group.consumer is None or len(widths) != 2:
        return None
    width, several = sorted(widths)
    if several % width or group.width != several:
        return None
    each = several // width
    writes = tuple(part for whole in group.cut.writes for part in _of_queries(whole, group.units, each, several))
    reads = tuple(part for whole in group.cut.reads for part in _of_queries(whole, group.units, each, several))
    cut = replace(group.cut, consumers=(Consumer(group.consumer, width),), writes=writes, reads=reads, counters={})
    role = group.role.removesuffix(HEADS) + QUERY_HEADS
    return replace(group, role=role, units=group.units * each, width=width, cut=cut, parts=group.units)


def _of_queries(whole: Blocks, units: int, each: int, several: int) -> Iterator[Blocks]:
    """What query heads own of a tensor: those of its blocks that are as wide as all queries of a KV head."""
    start = whole.start
    for width in whole.widths:
        if width == several:
            yield Blocks(whole.tensor, whole.dim, (width // each,), start)
        start += units * width
