"""Peaks: the most memory that a forward pass takes at once, its weights included, counted without running it."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from ..architectures.group import Groups, Masks
from ..editing.surgery import rewrite
from ..running.batch import Batch
from ..running.forward import call_model
from ..running.freezing import frozen
from .skeletons import by_shapes, placed_shape_of


def peak_bytes(model: nn.Module, batch: Batch, groups: Groups | None = None, masks: Masks | None = None) -> int:
    """Bytes of weights, buffers, inputs and of the tensors between, where these are most.

    Tensors count from the operation that makes them until nothing refers to them any more, as PyTorch frees them in
    eager mode. What kernels take for themselves, and what an allocator keeps, is not in it.

    Args:
        model: the model as it is now; unchanged.
        batch: its inputs.
        groups: its groups, if some units are to be taken away.
        masks: what is kept of them.
    """

    def measure(copied: nn.Module, inputs: Batch, running: AbstractContextManager) -> int:
        if groups is not None and masks is not None:
            rewrite(copied, groups, masks)
        return _peak(copied, inputs, running)

    return by_shapes(model, batch, measure, placed_shape_of)


@torch.no_grad()
def _peak(model: nn.Module, batch: Batch, running: AbstractContextManager) -> int:
    with running, frozen(model):
        counter = _Counter([*model.parameters(), *model.buffers(), *batch.values()])
        with counter:
            outputs = call_model(model, batch)
        del outputs  # which were there to the end
    return counter.peak


class _Counter(TorchDispatchMode):
    """Counts the bytes of storages that are alive.

    Args:
        before: tensors that are there before anything runs.

    Attributes:
        alive: bytes now.
        peak: the most so far.
    """

    def __init__(self, before: Iterable[Any]) -> None:
        super().__init__()
        self.alive = self.peak = 0
        self._known: dict[int, weakref.ref[UntypedStorage]] = {}
        self._held = [self._note(each) for each in before if isinstance(each, Tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: Mapping | None = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for each in tree_iter(outputs):
            if isinstance(each, Tensor):
                self._note(each)
        return outputs

    def _note(self, tensor: Tensor) -> UntypedStorage:
        storage = tensor.untyped_storage()
        place, size = id(storage), storage.nbytes()
        if place not in self._known:
            self._known[place] = weakref.ref(storage, lambda _: self._forget(place, size))
            self.alive += size
            self.peak = max(self.peak, self.alive)
        return storage

    def _forget(self, place: int, size: int) -> None:
        del self._known[place]
        self.alive -= size
