"""Looking ahead: what a consumer's output is added to, where that is not known before it runs.

A shortcut of a ResNet with a projection, or one that no module computes, is made after the block's last convolution has
run. As nothing but the sum reads what that writes, it has no part in the rest: a pass of its own, up to the sum, tells
beforehand what that is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..architectures.group import Consumer
from ..running.batch import Batch
from ..running.forward import call_model
from ..running.linears import rows_written
from .joins import ADDS, Join, Written, is_state


@torch.no_grad()
def late_term(model: nn.Module, batch: Batch, consumer: Consumer, join: Join) -> Tensor:
    """What is added to the output of a consumer, by a pass up to there.

    Args:
        model: the dense model or a pruned one.
        batch: its inputs.
        consumer: the consumer.
        join: its late join, of the channels that the model has.

    Returns:
        The term, of the shape that it has in the sum.

    Raises:
        ValueError: the pass does not come by the sum.
    """
    module = model.get_submodule(consumer.path)
    last = module if consumer.norm is None else model.get_submodule(consumer.norm)
    waiting = _Waiting(join)

    def hook(_: nn.Module, args: tuple, output: Tensor) -> None:
        waiting.written = waiting.written or Written(rows_written(module, output).clone())

    handle = last.register_forward_hook(hook)
    try:
        with waiting:
            call_model(model, batch)
    except _Found as found:
        return found.term
    finally:
        handle.remove()
    raise ValueError("its output is not added to what it was added to on the samples that showed where it joins")


class _Found(Exception):
    """Ends a pass at the sum."""

    def __init__(self, term: Tensor):
        super().__init__()
        self.term = term


class _Waiting(TorchDispatchMode):
    """Waits for the sum of what is written and something else."""

    def __init__(self, join: Join):
        super().__init__()
        self.join = join
        self.written: Written | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs: Mapping[str, Any] | None = None):
        if self.written is not None and func in ADDS and all(map(is_state, args[:2])):
            for one, other in (args[:2], args[1::-1]):
                if one.numel() == other.numel() and self._is_written(one):
                    raise _Found(other.clone())
        return func(*args, **kwargs or {})

    def _is_written(self, term: Tensor) -> bool:
        forms = (rows for of_maps, rows in self.written.forms_of(term) if of_maps == self.join.of_maps)
        return any(torch.equal(rows.reshape(self.written.value.shape), self.written.value) for rows in forms)
