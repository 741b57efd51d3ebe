"""Programs: a model for another runtime, with batch and length left open, by the exporters of transformers."""

from __future__ import annotations

import contextlib
import logging as python_logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..keeping.doors import keeping
from ..keeping.snapshot import configs_of
from ..running.batch import Batch
from ..running.forward import call_options, inputs_taken
from ..running.freezing import frozen
from .formats import format_named

_TOKENS = 3  # dimensions up to which the second one is a length; what has more are pixels
_TALKATIVE = (None, "torch.onnx", "torch.export", "transformers", "onnxscript")  # `None` is the root of all


@keeping("model")
def exported(model: nn.Module, batch: Batch, to: str = "onnx") -> Any:
    """A model as a program of another runtime.

    Args:
        model: of transformers or a plain module, dense or pruned; unchanged.
        batch: what it is traced on: at least two samples of at least two tokens, as one would be taken for a constant.
        to: see `format_named`.

    Returns:
        `transformers.exporters.ExportedModel`: call it with the inputs by name, or let it `save_pretrained`.

    Raises:
        ImportError: a package is not installed; says which, and how to install it.
        ValueError: an unknown format.
    """
    form = format_named(to)
    form.check()
    inputs = inputs_taken(model, batch)
    with frozen(model), torch.no_grad(), quiet(), _without_cache(model):
        exporter, config = form.exporter(), form.config(dynamic_shapes=dynamic_shapes(inputs))
        export = exporter.export(model, inputs | call_options(model), config)
    for component in export.components.values():
        forget_lines(component.program)
    return export


def forget_lines(program: Any) -> None:
    """Take out of a graph, in place, which lines of which files on this machine wrote it: a megabyte of BERT's."""
    if hasattr(program, "graph_module"):
        for node in program.graph.nodes:
            node.meta.pop("stack_trace", None)
    elif hasattr(program, "graphs"):
        for node in (node for graph in program.graphs() for node in graph):
            for noted in (node, *node.outputs):
                noted.metadata_props.clear()


def dynamic_shapes(inputs: Mapping[str, Tensor]) -> dict[str, dict[int, Any]]:
    """Which dimensions of each input stay open, where the model lets them: the batch, and the length of a sequence."""
    auto = torch.export.Dim.AUTO
    return {
        name: dict.fromkeys(range(min(value.dim(), 2 if value.dim() <= _TOKENS else 1)), auto)
        for name, value in inputs.items()
    }


@contextlib.contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """Let no part of a model begin a cache, whose empty tensors would be in the graph: T5's stacks have own configs."""
    asked = [config for config in configs_of(model.modules()) if getattr(config, "use_cache", False) is True]
    try:
        for config in asked:
            config.use_cache = False
        yield
    finally:
        for config in asked:
            config.use_cache = True


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Exporters speak of their own steps and of packages that nobody asked for; errors still come through."""
    loggers = [python_logging.getLogger(name) for name in _TALKATIVE]
    levels = [each.level for each in loggers]
    try:
        for each in loggers:
            each.setLevel(python_logging.ERROR)
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
