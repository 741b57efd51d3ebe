"""Whether passes of one sample agree, and if they do not, where and why they differ."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Groups
from ..passes.trajectory import hidden_states
from ..running.batch import Batch
from ..running.forward import call_model
from .observation import States, difference, differences, states_of


def check_repeats(model: nn.Module, groups: Groups, sample: Batch, first: States, rounding: float) -> bool:
    """Whether a second pass agrees with a first to the last bit; and raise if it does not even up to rounding.

    Args:
        model: the model, frozen.
        groups: its groups.
        sample: its inputs.
        first: what was seen of the first pass.
        rounding: the largest difference, as a share, that is none.

    Raises:
        ValueError: says where passes differ, and whether that is for random numbers.
    """
    off = differences(states_of(model, groups, sample), first)
    largest = max(off.values(), default=0.0)
    if largest <= rounding:
        return largest == 0
    state = next(name for name, share in off.items() if share > rounding)
    where = _first_to_differ(model, sample, rounding)
    cause = (
        "random numbers are drawn there (with torch.manual_seed before each pass they agree)"
        if _agrees_when_seeded(model, groups, sample, rounding)
        else "it depends on more than its inputs (random numbers of other libraries, or what calls leave behind)"
    )
    raise ValueError(
        f"two passes of one sample through this {type(model).__name__} differ, in {state} by {off[state]:.2g} of its "
        f"size, first in {where}: {cause}. Scores and refit compare passes: switch that off in evaluation mode, by the "
        "config or in a subclass"
    )


@torch.no_grad()
def _first_to_differ(model: nn.Module, sample: Batch, rounding: float) -> str:
    """Path of the first module that returns something else in a second pass."""
    passes = []
    for _ in range(2):
        returned: list[tuple[str, Any]] = []
        with ExitStack() as stack:
            for path, module in model.named_modules():
                stack.callback(module.register_forward_hook(_noting_hook(returned, path)).remove)
            call_model(model, sample)
        passes.append(returned)
    for (path, found), (_, expected) in zip(*passes, strict=False):
        if isinstance(expected, Tensor) and difference(found, expected) > rounding:
            return path or "its own forward"
    return "its own forward"


def _agrees_when_seeded(model: nn.Module, groups: Groups, sample: Batch, rounding: float) -> bool:
    seen = []
    for _ in range(2):
        torch.manual_seed(0)
        seen.append(states_of(model, groups, sample))
    return max(differences(*seen).values(), default=0.0) <= rounding


def _noting_hook(returned: list[tuple[str, Any]], path: str):
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        first = hidden_states(output) if isinstance(output, (Tensor, tuple, list)) and len(output) else None
        returned.append((path, first))

    return hook
