"""Coupling: layers that hand each other something as large as they are themselves, and so must lose the same units."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from ..architectures.group import Group, stack_of
from ..editing.surgery import rewrite
from ..keeping.interruption import raise_interruption
from ..running.batch import Batch
from ..running.forward import call_model
from .counters import undone


def every_second(groups: Iterable[Group]) -> list[Group]:
    """Every second group of each stack and role: of two layers in a row, one."""
    alike: dict[tuple[str, str], list[Group]] = defaultdict(list)
    for group in groups:
        alike[stack_of(group.layer), group.role].append(group)
    return [group for members in alike.values() for group in members[1::2]]


@torch.no_grad()
def coupled(model: nn.Module, groups: Sequence[Group], sample: Batch) -> list[Group]:
    """Groups that can be cut where they are, and then stop the model in another layer.

    T5's first cross-attention makes a bias of zeros for its heads, and hands it to all the others.

    Args:
        model: the model, frozen; unchanged.
        groups: its groups.
        sample: what to run.
    """
    copied = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})

    def runs(some: Sequence[Group]) -> bool:
        try:
            with undone(copied):
                rewrite(copied, some, {group.key: group.every_other() for group in some})
                call_model(copied, sample)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a forward may raise
            raise_interruption(error)
            return False
        return True

    return [] if runs(every_second(groups)) else [group for group in groups if not runs([group])]
