"""Values without elements in a graph, of which runtimes and quantizers make nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor


def empty_values(program: Any) -> list[str]:
    """The values of a graph that have a dimension of zero, each as `"name (operator)"`.

    Args:
        program: an `onnx_ir.Model`, a `torch.export.ExportedProgram` or an `openvino.Model`.
    """
    if hasattr(program, "graph_module"):
        found = _of_torch(program)
    elif hasattr(program, "get_ordered_ops"):
        found = _of_openvino(program)
    else:
        found = _of_onnx(program)
    return list(dict.fromkeys(found))


def _of_torch(program: Any) -> Iterator[str]:
    # A parameter that nothing reads (of PyTorch's multi-head attention without heads) is none of the graph's work.
    for node in (each for each in program.graph.nodes if each.op != "placeholder" or each.users):
        values = node.meta.get("val")
        for value in values if isinstance(values, (tuple, list)) else (values,):
            if isinstance(value, Tensor) and any(isinstance(size, int) and size == 0 for size in value.shape):
                yield f"{node.name} ({node.op})"


def _of_openvino(program: Any) -> Iterator[str]:
    for node in program.get_ordered_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.rank.is_static and any(size.is_static and size.get_length() == 0 for size in shape):
                yield f"{node.get_friendly_name()} ({node.get_type_name()})"


def _of_onnx(program: Any) -> Iterator[str]:
    for graph in program.graphs():
        for value in graph.initializers.values():
            if _is_empty(value):
                yield f"{value.name} (Initializer)"
        for node in graph:
            # A list of axes or sizes may be empty by right: it says that there are none.
            for value in (*node.inputs, *node.outputs):
                if value is not None and _is_empty(value):
                    yield f"{value.name} ({node.op_type})"


def _is_empty(value: Any) -> bool:
    shape = value.shape if value.shape is not None else getattr(value.const_value, "shape", None)
    return shape is not None and any(size == 0 for size in shape)
