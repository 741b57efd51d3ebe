"""Backends: what runs a model when it is timed."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..files.held import temporary_folder
from ..keeping.interruption import raise_interruption
from ..programs.formats import format_named
from ..programs.onnx_files import OnnxSession, to_onnx
from ..running.batch import samples_in
from .side_by_side import run_once

Run = Callable[[], None]


def check_backend(name: str, device: torch.device) -> None:
    """Raise if a backend cannot run here.

    Raises:
        ValueError: `torch.compile` does not work on the device.
        ImportError: a package is not installed; says which, and how to install it.
    """
    if name == "onnx":
        format_named("onnx").check()
    if name == "compile":
        check_compiler("latency_backend='compile'", "take 'eager'", device)


def check_compiler(asked: str, otherwise: str, device: torch.device) -> None:
    """Raise if `torch.compile` does not work on a device, found by compiling something small.

    Args:
        asked: what takes it, for the error.
        otherwise: what to do without it.
        device: where it is to work.

    Raises:
        ValueError: it does not.
    """
    try:
        torch.compile(_small)(torch.ones(2, 2, device=device))
    except Exception as error:  # whatever a compiler that is not there ends in
        raise_interruption(error)
        said = (str(error).splitlines() or [""])[0]
        raise ValueError(
            f"{asked} does not work here ({type(error).__name__}: {said:.200}): torch.compile takes a C++ compiler "
            f"(g++) and Python's headers on the CPU, and triton on a GPU; or {otherwise}."
        ) from error


def _small(x: Tensor) -> Tensor:
    return (x + 1).relu().sum()


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
