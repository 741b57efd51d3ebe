"""Runners: a model in one form, in memory and ready to be timed, and how it goes to disk and comes from there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..models.identity import device_of, dtype_of, is_of_transformers
from ..plain_modules.weights import write_weights
from ..programs.onnx_files import OnnxSession, quantize_int8, to_onnx
from ..running.batch import Batch
from ..running.forward import call_model, call_options, inputs_taken, run_model
from ..running.prepared import copy_of
from ..storage.integrity import reloaded

_ONNX, _ONNX_INT8 = "model.onnx", "model.int8.onnx"
_WEIGHTS = (".safetensors", ".bin", ".pt", ".onnx", ".data")


class Runner(Protocol):
    """A model in one form.

    `model` is the PyTorch model, which may generate; `None` for what has none.
    """

    model: nn.Module | None

    def feed(self, batch: Batch) -> Any:
        """What `run` takes, made of a batch; not timed."""

    def run(self, feed: Any) -> None:
        """Run it, and return once all is done."""

    def outputs(self, batch: Batch) -> dict[str, Any]:
        """What it returns for a batch, by name."""


class TorchRunner:
    """A PyTorch model.

    Args:
        model: the model, in evaluation mode; run it without gradients.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self._device, self._dtype = device_of(model), dtype_of(model)
        self._options = call_options(model) if is_of_transformers(model) else None  # it takes time to find them

    def feed(self, batch: Batch) -> Batch:
        """The inputs that the model takes, in its type."""
        return inputs_taken(self.model, self._cast(batch))

    def run(self, feed: Batch) -> None:
        """Run it, and wait until an accelerator has done it."""
        self._call(feed)
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)

    def outputs(self, batch: Batch) -> dict[str, Any]:
        """See `run_model`."""
        return run_model(self.model, self._cast(batch))

    def _call(self, feed: Batch) -> Any:
        if self._options is None:
            return call_model(self.model, feed)
        return self.model(**feed, **self._options)

    def _cast(self, batch: Batch) -> Batch:
        return {name: value.to(self._dtype) if value.is_floating_point() else value for name, value in batch.items()}


class OnnxRunner:
    """An ONNX file in ONNX Runtime.

    Args:
        path: the file.
        threads: how many threads it may use.
    """

    model: nn.Module | None = None

    def __init__(self, path: Path, threads: int):
        self._session = OnnxSession(path, threads)

    def feed(self, batch: Batch) -> dict[str, Any]:
        """Arrays by the names that the graph has."""
        return {name: batch[name].detach().cpu().numpy() for name in self._session.inputs}

    def run(self, feed: dict[str, Any]) -> None:
        """Run it."""
        self._session.session.run(None, feed)

    def outputs(self, batch: Batch) -> dict[str, Any]:
        """Its outputs by name."""
        return self._session(batch)


def write_model(model: nn.Module, folder: Path) -> None:
    """Write a model's weights, and its config if it has one, into an empty folder."""
    if is_of_transformers(model):
        model.save_pretrained(folder)
    else:
        write_weights(model, folder / "model.safetensors", {})


def loader_of(
    model: nn.Module, folder: Path, change: Callable[[nn.Module], None] | None = None
) -> Callable[[], Runner]:
    """How to load what `write_model` wrote; modules that only their own code makes are copied.

    Args:
        model: the model that was written.
        folder: where it was written.
        change: what is done to it in place, once it is loaded.
    """

    def load() -> Runner:
        if is_of_transformers(model):
            loaded = reloaded(model, folder).to(device_of(model)).eval()
        else:
            loaded = copy_of(model).eval()
        if change is not None:
            change(loaded)
        return TorchRunner(loaded)

    return load


def write_onnx(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], OnnxRunner]:
    """Export a model into an empty folder; return how to load it."""
    path = to_onnx(model, batch, folder / _ONNX)
    return lambda: OnnxRunner(path, threads)


def write_onnx_int8(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], OnnxRunner]:
    """Export a model into an empty folder and quantize it; return how to load it. Only the quantized file is left."""
    path = to_onnx(model, batch, folder / _ONNX)
    target = quantize_int8(path, folder / _ONNX_INT8)
    for file in folder.glob(f"{_ONNX}*"):
        file.unlink()
    return lambda: OnnxRunner(target, threads)


def size_of(folder: Path) -> int:
    """Bytes of the weights in a folder, and of graphs with them."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.suffix in _WEIGHTS)
