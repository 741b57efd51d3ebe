"""Switches of the thread and the process: how they stand, and how they are turned back."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import overrides
from torch.utils import _python_dispatch

Switches = list[tuple[Callable, tuple]]
"""How to turn each switch, and how it stands."""

_KERNELS = {
    torch.backends.cuda.enable_flash_sdp: torch.backends.cuda.flash_sdp_enabled,
    torch.backends.cuda.enable_mem_efficient_sdp: torch.backends.cuda.mem_efficient_sdp_enabled,
    torch.backends.cuda.enable_math_sdp: torch.backends.cuda.math_sdp_enabled,
    torch.backends.cuda.enable_cudnn_sdp: torch.backends.cuda.cudnn_sdp_enabled,
}

_SEEN_BY_COMPILER = "_is_in_any_mode_without_ignore_compile_internals"
_FLAGS = ("_is_in_torch_dispatch_mode", "_is_in_non_infra_torch_dispatch_mode", _SEEN_BY_COMPILER)


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
        (_set_dispatch_modes, (_python_dispatch._get_current_dispatch_mode_stack(),)),
        (_set_function_modes, (overrides._get_current_function_mode_stack(),)),
        (_set_flags, ({name: getattr(_python_dispatch, name) for name in _FLAGS if hasattr(_python_dispatch, name)},)),
        (torch._C._set_only_lift_cpu_tensors, (torch._C._only_lift_cpu_tensors(),)),
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


def _set_dispatch_modes(before: list) -> None:
    """Let these modes of dispatch be on, in this order.

    Their own `__exit__` is not asked: it fails in a mode that was interrupted while it came or went.
    """
    now = _python_dispatch._get_current_dispatch_mode_stack()
    same = _in_common(now, before)
    for mode in reversed(now[same:]):
        attributes = vars(mode)
        _python_dispatch._pop_mode(attributes.get("_dispatch_key") or attributes.get("_mode_key"))
    for mode in before[same:]:
        _python_dispatch._push_mode(mode)


def _set_function_modes(before: list) -> None:
    """The same of modes of functions."""
    now = overrides._get_current_function_mode_stack()
    same = _in_common(now, before)
    for _ in now[same:]:
        overrides._pop_mode()
    for mode in before[same:]:
        overrides._push_mode(mode)


def _in_common(now: list, before: list) -> int:
    """How many modes are the same, from the outermost on."""
    differ = (number for number, (one, other) in enumerate(zip(now, before, strict=False)) if one is not other)
    return next(differ, min(len(now), len(before)))


def _set_flags(before: dict[str, bool]) -> None:
    """Put back what PyTorch knows of the modes that are on, as those that are not asked do not."""
    vars(_python_dispatch).update(before)
    if _SEEN_BY_COMPILER in before:
        _python_dispatch.set_is_in_mode_without_ignore_compile_internals(before[_SEEN_BY_COMPILER])
