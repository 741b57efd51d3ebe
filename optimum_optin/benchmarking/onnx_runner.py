"""ONNX Runtime's runner: a model exported, perhaps quantized, and run there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from ..exporting.onnx_files import OnnxSession, quantize_int8, to_onnx
from ..running.batch import Batch

_FILE, _QUANTIZED = "model.onnx", "model.int8.onnx"


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


def write_onnx(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], OnnxRunner]:
    """Export a model into an empty folder; return how to load it."""
    path = to_onnx(model, batch, folder / _FILE)
    return lambda: OnnxRunner(path, threads)


def write_onnx_int8(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], OnnxRunner]:
    """Export a model into an empty folder and quantize it; return how to load it. Only the quantized file is left."""
    path = to_onnx(model, batch, folder / _FILE)
    target = quantize_int8(path, folder / _QUANTIZED)
    for file in folder.glob(f"{_FILE}*"):
        file.unlink()
    return lambda: OnnxRunner(target, threads)
