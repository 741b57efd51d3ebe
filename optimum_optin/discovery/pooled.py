"""Linears and convolutions that read one token, or place, of each sample: poolers and heads of whole samples."""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..running.batch import Batch
from ..running.forward import call_model
from ..running.linears import CONVOLUTIONS, rows_written

_READERS = (nn.Linear, Conv1D, *CONVOLUTIONS)


@torch.no_grad()
def pooled_readers(model: nn.Module, sample: Batch) -> frozenset[str]:
    """Paths of the linears and convolutions that only ever write one row (see `rows_written`).

    Args:
        model: the model, frozen.
        sample: its inputs, a batch of one sample.
    """
    most: dict[str, int] = {}

    def counting(path: str):
        def hook(module: nn.Module, args: tuple, output: Any) -> None:
            if isinstance(output, Tensor):
                rows = math.prod(rows_written(module, output).shape[:-1])
                most[path] = max(rows, most.get(path, 0))

        return hook

    with ExitStack() as stack:
        for path, module in model.named_modules():
            if isinstance(module, _READERS):
                stack.callback(module.register_forward_hook(counting(path)).remove)
        call_model(model, sample)
    return frozenset(path for path, rows in most.items() if rows <= 1)
