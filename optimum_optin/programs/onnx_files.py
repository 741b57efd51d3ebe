"""ONNX files: a model written as one, and sessions that run it on the batches that the model takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..running.batch import Batch
from .empty import empty_values
from .exported import exported, quiet


def to_onnx(model: nn.Module, batch: Batch, path: str | os.PathLike) -> Path:
    """Write a model into an ONNX file, with its weights in a file beside it (`model.onnx.data`).

    Args:
        model: of transformers or a plain module, dense or pruned; unchanged.
        batch: what it is traced on, see `exported`.
        path: the file to write; its folder must be there.

    Returns:
        The path.

    Raises:
        ImportError: see `exported`.
    """
    program = exported(model, batch, "onnx")
    from transformers.exporters.exporter_onnx import OnnxExporter

    OnnxExporter.save_program(program.program, path)
    return Path(path)


class OnnxSession:
    """An ONNX file in ONNX Runtime on the CPU, called with a batch as a model is.

    Args:
        path: the file.
        threads: how many threads one operation may take; `None` for as many as ONNX Runtime likes.
        **options: further settings of `onnxruntime.SessionOptions`, by name.

    Example:

        session = OnnxSession(to_onnx(model, batch, "model.onnx"), threads=1)
        logits = session(batch)["logits"]
    """

    def __init__(self, path: str | os.PathLike, threads: int | None = None, **options: Any):
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors
        for name, value in options.items():
            setattr(settings, name, value)
        if threads is not None:
            settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        self.session = onnxruntime.InferenceSession(os.fspath(path), settings, providers=["CPUExecutionProvider"])
        self.inputs = [each.name for each in self.session.get_inputs()]
        self.outputs = [each.name for each in self.session.get_outputs()]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """The outputs by the graph's names (`output` of a module that returns one tensor); other inputs are left out.

        Raises:
            ValueError: an input that it reads is not there.
        """
        if missing := [name for name in self.inputs if name not in batch]:
            raise ValueError(f"the ONNX file reads {' and '.join(missing)}, and the batch has {', '.join(batch)}.")
        given = {name: batch[name].detach().cpu().numpy() for name in self.inputs}
        return dict(zip(self.outputs, map(torch.from_numpy, self.session.run(None, given)), strict=True))


def quantize_int8(path: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Write another ONNX file with weights in 8 bits; activations are quantized as they come (`quantize_dynamic`).

    Args:
        path: the file to quantize; unchanged.
        target: the file to write; its folder must be there.

    Returns:
        The target.

    Raises:
        ValueError: an operator reads nothing, which ONNX Runtime makes nonsense of in 8 bits.
    """
    from transformers.exporters.exporter_onnx import OnnxExporter

    OnnxExporter.save_program(in_int8(OnnxExporter.load_program(path)), target)
    return Path(target)


def in_int8(program: Any) -> Any:
    """An `onnx_ir.Model` with weights in int8; see `quantize_int8`.

    Each output of a linear has a step of its own: one for all would be as coarse as the largest weight asks for.
    Weights keep to 7 of the 8 bits: without VNNI, ONNX Runtime adds products of 8 bits in 16, and sums saturate.
    """
    from transformers.exporters.quantizers.quantizer_onnxruntime import OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    if empty := empty_values(program):
        raise ValueError(
            f"the graph has values with a dimension of zero, {', '.join(empty[:3])}, of which ONNX Runtime makes "
            "nonsense in 8 bits: export without quantize."
        )
    config = OnnxRuntimeDynamicConfig(reduce_range=True, per_channel=True)
    with quiet():
        return OnnxRuntimeQuantizer(config).quantize(program, {}, "onnx")
