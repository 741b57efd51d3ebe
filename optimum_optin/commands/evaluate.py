"""Measure a model, pruned or not, on a GLUE task with the task's official metrics."""

from __future__ import annotations

import argparse

from ..evaluation import evaluate_glue
from ..glue import find_task
from ..loading import load_model, load_processor
from .arguments import add_loading, loading_options
from .options import add_options, given

_OPTIONS = ("data_dir", "split", "batch_size", "max_samples")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `evaluate` takes."""
    parser.add_argument("--task", required=True, help="GLUE task, e.g. glue/sst2")
    parser.add_argument("--model", required=True, metavar="MODEL", help="local folder or Hub id of the model")
    add_options(parser, evaluate_glue, _OPTIONS)
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load and measure."""
    find_task(arguments.task)  # an unknown one is refused before the model is loaded
    loading = loading_options(arguments)
    model = load_model(arguments.model, None, **loading)
    processor = load_processor(arguments.model, **loading)
    entry = evaluate_glue(model, processor, arguments.task, **given(arguments, _OPTIONS))
    lines = [f"{entry['task']}, {entry['split']}, {entry['samples']} samples"]
    for name, measured in entry["metrics"].items():
        lines.append(f"{name}: {100 * measured['value']:.1f} ± {100 * measured['error']:.1f}")
    return {"model": arguments.model, **entry}, "\n".join(lines)
