"""Switches of the thread and the process: how they stand, and how they are turned back."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

Switches = list[tuple[Callable, tuple]]
"""How to turn each switch, and how it stands."""

_KERNELS = {
    torch.backends.cuda.enable_flash_sdp: torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.enable_mem_efficient_sdp: torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.enable_math_sdp: torch.backends.cuda.math_sdp_enabled,
    torch.backends.cuda.enable_cudnn_sdp: torch.backends.cuda.cudnn_sdp_enabled,
}


def switches() -> Switches:
    """What a forward may turn for a while: gradients, autocast, kernels of attention."""
    accelerator = torch.accelerator.current_accelerator()
    stands: Switches = [(torch.set_grad_enabled, (torch.is_grad_enabled(),))]
    for kind in {"cpu", "cpu" if accelerator is None else accelerator.type}:
        stands.append((torch.set_autocast_enabled, (kind, torch.is_autocast_enabled(kind))))
        stands.append((torch.set_autocast_dtype, (kind, torch.get_autocast_dtype(kind))))
    return stands + [(enable, (enabled(),)) for enable, enabled in _KERNELS.items()]


def all_switches() -> Switches:
    """These, and what tracing, proofs and skeletons turn: random streams, modes of dispatch, the default type."""
    stands: Switches = [
        (_leave_modes, (_get_current_dispatch_mode_stack, len(_get_current_dispatch_mode_stack()))),
        (_leave_modes, (_get_current_function_mode_stack, len(_get_current_function_mode_stack()))),
        (torch.set_default_dtype, (torch.get_default_dtype(),)),
        (torch.backends.mha.set_fastpath_enabled, (torch.backends.mha.get_fastpath_enabled(),)),
        (torch.default_generator.set_state, (torch.default_generator.get_state(),)),
        (random.setstate, (random.getstate(),)),
        (np.random.set_state, (np.random.get_state(),)),
    ]
    if torch.cuda.is_initialized():
        stands.append((torch.cuda.set_rng_state_all, (torch.cuda.get_rng_state_all(),)))
    return stands + switches()


def turn(stands: Switches) -> None:
    """Turn switches to where they stood."""
    for how, where in stands:
        how(*where)


def _leave_modes(stack: Callable[[], list], depth: int) -> None:
    """Leave the innermost modes, until there are so many."""
    while len(modes := stack()) > depth:
        modes[-1].__exit__(None, None, None)
