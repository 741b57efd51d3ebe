"""What a refit takes for granted: passes that wait for each other do what each of them does alone."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, closing

import torch
from torch import Tensor, nn

from ..architectures.group import Groups
from ..keeping.interruption import raise_interruption
from ..passes.pauses import HeldPass, kept_modules, running_pass
from ..running.batch import Batch
from ..running.forward import run_model
from .observation import Observation, difference, linears_of


@torch.no_grad()
def refit_problems(
    model: nn.Module, groups: Groups, sample: Batch, dense: Observation, rounding: float
) -> dict[str, str]:
    """Group key -> why it cannot be refitted; none for those that can.

    A refit holds many passes at once, each stopped in the middle. A model whose modules keep what they compute for
    later in the pass would mix them up. So the sample runs again, and stops wherever a refit would, while another one,
    the same in reverse, comes as far.

    Args:
        model: the model, frozen; unchanged.
        groups: its groups.
        sample: its inputs.
        dense: what a pass of the sample alone was seen to do.
        rounding: the largest difference, as a share, between two ways to compute the same.
    """
    try:
        outputs = _beside_another(model, groups, sample)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever a forward may raise that cannot be left and taken up again
        raise_interruption(error)
        return _all(groups, f"it cannot be stopped in the middle of a pass ({type(error).__name__}: {error})")
    for name, found in outputs.items():
        off = difference(found, dense.states[name]) if name in dense.states else 0.0
        if off > rounding:
            return _all(
                groups,
                f"{name} is {off:.2g} of its size off if another sample runs while the first has stopped in the middle "
                "of its pass: modules keep what they compute of one sample, and use it for the other",
            )
    return {}


def _all(groups: Groups, problem: str) -> dict[str, str]:
    return {group.key: problem for group in groups}


def _beside_another(model: nn.Module, groups: Groups, sample: Batch) -> Mapping[str, Tensor]:
    """What the model returns for a sample, another one beside."""
    other = {name: value.flip(-1) if value.dim() > 1 else value for name, value in sample.items()}
    passes = [HeldPass(lambda batch=batch: run_model(model, batch)) for batch in (sample, other)]
    paths = {path for group in groups for path in linears_of(group)}
    with ExitStack() as stack:
        stack.enter_context(kept_modules(model))
        for path in paths:
            stack.callback(model.get_submodule(path).register_forward_pre_hook(_stop).remove)
        for each in passes:
            stack.enter_context(closing(each))
        while not passes[0].ended:
            for each in passes:
                if not each.ended:
                    each.go_on()
    return {name: value for name, value in passes[0].result.items() if isinstance(value, Tensor)}


def _stop(module: nn.Module, args: tuple) -> None:
    if (held := running_pass()) is not None:
        held.pause(module)
