"""Kinds: groups that are alike, so that what is measured of all of them together tells what one costs."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Groups, attribute

Kind = Sequence[Group]
"""Groups of one role and stack that own as much of tensors of the same shapes."""


def kinds_of(model: nn.Module, groups: Groups) -> list[Kind]:
    """The groups of a model by kind, in order of execution.

    Args:
        model: the model as it is now.
        groups: its groups, or some of them.
    """
    found: dict[tuple, list[Group]] = defaultdict(list)
    for group in groups:
        blocks = (*group.cut.writes, *group.cut.reads)
        shapes = tuple(
            (re.sub(r"\d+", "0", part.tensor), part.dim, part.widths, attribute(model, part.tensor).shape)
            for part in blocks
        )
        found[group.role, group.units, group.parts, shapes].append(group)
    return list(found.values())


def masks_at(kind: Kind, units: int) -> Mapping[str, Tensor]:
    """Masks with which every group of a kind keeps so many units, the first ones of each part.

    Args:
        kind: the groups.
        units: a multiple of the group's parts.
    """
    inside = kind[0].units // kind[0].parts
    mask = (torch.arange(inside) < units // kind[0].parts).repeat(kind[0].parts)
    return {group.key: mask for group in kind}
