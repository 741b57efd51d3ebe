"""Backends: what runs a model when it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..files.held import temporary_folder
from ..programs.formats import format_named
from ..programs.onnx_files import OnnxSession, to_onnx
from ..running.batch import samples_in
from .side_by_side import run_once

Run = Callable[[], None]


def check_backend(name: str) -> None:
    """Raise if a backend cannot run here.

    Raises:
        ValueError: there is no C++ compiler for `torch.compile`.
        ImportError: a package is not installed; says which, and how to install it.
    """
    if name == "onnx":
        format_named("onnx").check()
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
        model: the model, in evaluation mode, which is compiled in place; call it without gradients, though not in
            inference mode.
        batch: its inputs.
        backend: a `latency_backend` of `OptinConfig`.
    """
    if backend == "compile":
        torch._dynamo.reset()  # it counts the variants of all models of a class together, and gives up at some number
        model.compile(dynamic=False)
    if backend == "onnx":
        session = _session(model, batch)
        return lambda: session(batch)
    return lambda: run_once(model, batch)


def _session(model: nn.Module, batch: Mapping[str, Tensor]) -> OnnxSession:
    """A model in ONNX Runtime, with as many threads as PyTorch takes."""
    several = batch if samples_in(batch) > 1 else {name: torch.cat([value] * 2) for name, value in batch.items()}
    with temporary_folder() as folder:
        return OnnxSession(to_onnx(model, several, folder / "model.onnx"), threads=torch.get_num_threads())
