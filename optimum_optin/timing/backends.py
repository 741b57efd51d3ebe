"""Backends: what runs a model when it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from .side_by_side import run_once

BACKENDS = ("eager", "compile")
"""PyTorch as it is, and `torch.compile`."""

Run = Callable[[], None]


def check_backend(name: str) -> None:
    """Raise if a backend cannot run here.

    Raises:
        ValueError: says what is missing.
    """
    if name == "compile" and not torch.cuda.is_available():
        from torch._inductor.cpp_builder import get_cpp_compiler

        try:
            get_cpp_compiler()
        except RuntimeError as error:
            raise ValueError(
                "latency_backend='compile' takes a C++ compiler, which torch.compile does not find: install one, such "
                "as g++, or take 'eager'."
            ) from error


def runner(model: nn.Module, batch: Mapping[str, Tensor], backend: str) -> Run:
    """A run of a model on a batch, ready to be timed.

    Args:
        model: the model, in evaluation mode, which is compiled in place; call it without gradients.
        batch: its inputs.
        backend: one of `BACKENDS`.
    """
    if backend == "compile":
        torch._dynamo.reset()  # it counts the variants of all models of a class together, and gives up at some number
        model.compile(dynamic=False)
    return lambda: run_once(model, batch)
