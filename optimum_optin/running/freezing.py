"""A model that is measured: in evaluation mode, without gradients, and left as it was found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from ..keeping.doors import put_back
from ..keeping.interruption import uninterrupted
from ..keeping.snapshot import fill
from ..keeping.turns import my_turn
from .multihead import running_plainly
from .prepared import unprepare


@contextmanager
@uninterrupted
def frozen(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode, without gradients of parameters and without autocast; undone on exit.

    Inside, every module runs the forward of its class (`unprepare`), and on all tokens at once rather than in chunks;
    PyTorch's own multi-head attention runs its linears as modules (`PlainHeads`).
    Whatever a forward pass sets on modules is undone, too: Swin's layers would keep the smaller windows of a small
    image. So rewrite a copy, not the model itself. Another thread waits until the model is free.
    """
    with my_turn() as turn, put_back(model, turn, whole=False):
        modules = list(model.modules())
        model.eval()
        unprepare(model)
        for module in filter(_is_chunked, modules):  # running tokens in chunks only saves memory
            module.chunk_size_feed_forward = 0
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.requires_grad_(False)
        # Sums over tokens need the model's own precision: `dtype=` of from_pretrained chooses it.
        # Autocast does not know the meta device, where copies are counted.
        device = next((parameter.device.type for parameter in model.parameters() if not parameter.is_meta), "cpu")
        with torch.autocast(device, enabled=False), running_plainly(modules):
            turn.deliver()
            yield


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Take back, on exit, whatever forward passes write into the model's buffers: some count their calls there."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers() if not buffer.is_meta]
    try:
        yield
    finally:
        fill(before)


def _is_chunked(module: nn.Module) -> bool:
    return bool(getattr(module, "chunk_size_feed_forward", 0))
