"""Independent random streams: one for each minibatch, so that results do not depend on who works on which."""

from __future__ import annotations

import torch


def generators(seed: int, count: int) -> list[torch.Generator]:
    """Generators of independent streams, on the CPU.

    Args:
        seed: of them all.
        count: how many; the first ones do not depend on it.
    """
    seeds = torch.Generator().manual_seed(seed)
    drawn = [int(torch.randint(2**62, (), generator=seeds)) for _ in range(count)]
    return [torch.Generator().manual_seed(each) for each in drawn]
