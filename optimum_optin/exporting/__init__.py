"""Exporting: a model as a program of another runtime, checked against the model itself."""

from .agreement import Agreement
from .export import export_model
from .notes import Export
from .onnx_files import OnnxSession, quantize_int8, to_onnx

__all__ = ["Agreement", "Export", "OnnxSession", "export_model", "quantize_int8", "to_onnx"]
