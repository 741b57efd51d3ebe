"""Independent random streams: one for each minibatch, so that results do not depend on which process works on it.

The user's own streams stay where they were.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..keeping.interruption import uninterrupted
from ..keeping.turns import my_turn


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Generators of independent streams, on the CPU.

    Args:
        seed: one seed for all of them.
        count: how many; the first ones do not depend on it.
    """
    seeds = torch.Generator().manual_seed(seed)
    drawn = [int(torch.randint(2**62, (), generator=seeds)) for _ in range(count)]
    return [torch.Generator().manual_seed(each) for each in drawn]


@contextmanager
@uninterrupted
def kept_streams(data: Any) -> Iterator[None]:
    """Put PyTorch's global generator and those of a `DataLoader` back into their states on exit.

    A loader that shuffles draws its order from them, and every loader a seed for its workers.
    """
    found = [torch.default_generator]
    if isinstance(data, DataLoader):
        samplers = (data.sampler, data.batch_sampler, getattr(data.batch_sampler, "sampler", None))
        found += [getattr(each, "generator", None) for each in (data, *samplers)]
    states = [(each, each.get_state()) for each in found if isinstance(each, torch.Generator)]
    with my_turn() as turn:
        try:
            try:
                yield
            finally:
                _set(states)
        finally:  # once more: the line before might be where it is interrupted
            _set(states)
        turn.deliver()


def _set(states: Iterable[tuple[torch.Generator, Tensor]]) -> None:
    for generator, state in states:
        generator.set_state(state)
