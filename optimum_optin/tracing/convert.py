"""From traced groups to the `Group` that scoring and rewriting take, where it can express them."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch
from torch import nn

from ..architectures.group import HEADS, NEURONS, Cut, Group, Producer
from .found import FoundGroup, LeftOut, Slice, is_rising


class _Inexpressible(Exception):
    """Why a `Group` cannot say what was found."""


def as_groups(model: nn.Module, found: Iterable[FoundGroup]) -> tuple[list[Group], list[LeftOut]]:
    """Groups of linears with one consumer each.

    They are named by the path of the smallest numbered module around them (`"encoder.layer.3.heads"`). What a walk
    through the layers must know (`residual`), counters and the attention module (`core`) is not found by tracing.

    Args:
        model: that was traced.
        found: its groups.

    Returns:
        The groups, and those that a `Group` cannot express, with reasons.
    """
    groups, left_out = [], []
    for each in found:
        try:
            groups.append(_as_group(model, each))
        except _Inexpressible as error:
            names = tuple(f"{part.tensor}[{part.dim}]" for part in (*each.writes, *each.reads))
            left_out.append(LeftOut(names, str(error)))
    return groups, left_out


def _as_group(model: nn.Module, found: FoundGroup) -> Group:
    if len(found.reads) > 1:
        raise _Inexpressible(f"{len(found.reads)} weights read the units, and a group has one consumer")
    (read,) = found.reads
    if found.shared:
        names = ", ".join(part.tensor for part in found.shared)
        raise _Inexpressible(f"{names} is shared with the units of other layers")
    consumer, linear = _linear(model, read)
    if linear is None or read.dim != 1 or not is_rising(read.indices):
        raise _Inexpressible(f"{read.tensor} is not the weight of a linear that reads one unit after the other")
    width = read.indices.shape[1]
    producers, tables, parameters = [], {}, dict(model.named_parameters())
    for write in found.writes:
        path, linear = _linear(model, write)
        parts = write.indices.shape[1] // width
        if linear is not None and write.dim == 0 and _is_in_parts(write, width, linear.out_features):
            producers += [Producer(path, parts)] if write.tensor.endswith(".weight") else []
        elif is_rising(write.indices) and write.indices.shape[1] == 1 and write.tensor in parameters:
            tables[write.tensor] = write.dim
        else:
            raise _Inexpressible(
                f"what the units own of {write.tensor} is neither one row of a table, nor equal blocks of {width} rows "
                "of a linear"
            )
    _check_biases(model, producers, found)
    layer = re.match(r"(.*\.)?\d+(?=\.|$)", found.module)
    role = NEURONS if width == 1 else HEADS
    name = layer.group() if layer else found.module
    return Group(name, role, found.units, width, Cut(consumer, tuple(producers), tables=tables))


def _linear(model: nn.Module, part: Slice) -> tuple[str, nn.Linear | None]:
    """The module that holds a tensor, by path, and itself if it is a linear."""
    path = part.tensor.rpartition(".")[0]
    module = model.get_submodule(path)
    return path, module if isinstance(module, nn.Linear) else None


def _is_in_parts(write: Slice, width: int, rows: int) -> bool:
    """Whether the rows are equal blocks, in each of which units follow each other (packed queries, keys and values)."""
    if write.indices.numel() != rows or write.indices.shape[1] % width:
        return False
    blocks = torch.arange(rows).view(-1, len(write.indices), width)  # (parts, units, width)
    return torch.equal(write.indices, blocks.transpose(0, 1).flatten(1))


def _check_biases(model: nn.Module, producers: Iterable[Producer], found: FoundGroup) -> None:
    written = {write.tensor for write in found.writes}
    for producer in producers:
        if model.get_submodule(producer.path).bias is not None and f"{producer.path}.bias" not in written:
            raise _Inexpressible(f"the rows of {producer.path} are the units', those of its bias are not")
