"""Measure a model on a GLUE task with the task's official metrics; with --dense, next to the dense model.

--revision and --subfolder are those of --model.
"""

from __future__ import annotations

import argparse

from ..evaluation.accuracy import compare_glue, evaluate_glue
from ..evaluation.glue import find_task
from ..figures import plain
from ..storage.loading import load_model, load_processor
from .arguments import add_comparison, add_loading, load_dense, loading_options, report_to_update
from .options import add_options, given
from .rescue import note_figures

_OPTIONS = ("data_dir", "split", "batch_size", "max_samples")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `evaluate`."""
    parser.add_argument("--task", required=True, help="GLUE task, e.g. glue/sst2")
    parser.add_argument("--model", required=True, metavar="MODEL", help="local folder or Hub id of the model")
    add_comparison(parser, required=False)
    add_options(parser, evaluate_glue, _OPTIONS)
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load the model, or both, and measure."""
    find_task(arguments.task)  # an unknown one is refused before the model is loaded
    report = report_to_update(arguments)
    loading, options = loading_options(arguments), given(arguments, _OPTIONS)
    model = load_model(arguments.model, None, **loading)
    processor = load_processor(arguments.model, **loading)
    if arguments.dense is None:
        entry = evaluate_glue(model, processor, arguments.task, **options)
        lines = [f"{entry['task']}, {entry['split']}, {entry['samples']} samples"]
        for name, measured in entry["metrics"].items():
            lines.append(f"{name}: {100 * measured['value']:.1f} ± {100 * measured['error']:.1f}")
    else:
        entry = compare_glue({"dense": load_dense(arguments), "pruned": model}, processor, arguments.task, **options)
        lines = [str(entry)]
    result = {"model": arguments.model, **plain(entry)}, "\n".join(lines)
    if report is not None:
        note_figures(arguments.model, report.evaluated(entry), result)
    return result
