"""Time a pruned model against the dense one, side by side in one run.

Revision and subfolder are the pruned model's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..benchmark import latency_entry
from ..loading import load_model
from ..report import REPORT_FILE, PruningReport, latency_line
from .arguments import add_loading, loading_options
from .options import add_options, given


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `benchmark` takes."""
    parser.add_argument("--model", required=True, metavar="PRUNED", help="local folder or Hub id of the pruned model")
    parser.add_argument("--dense", required=True, metavar="DENSE", help="local folder or Hub id of the dense model")
    add_options(parser, latency_entry, ("tokens", "batch_size", "repeats"))
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load both and time them."""
    options = given(arguments, ("tokens", "batch_size", "repeats"))
    if "tokens" not in options:
        options["tokens"] = _calibration_tokens(arguments.model)
    loading = loading_options(arguments)
    pruned = load_model(arguments.model, None, **loading)
    shared = {name: value for name, value in loading.items() if name not in ("revision", "subfolder")}
    dense = load_model(arguments.dense, None, **shared)
    entry = latency_entry(dense, pruned, **options)
    return {"model": arguments.model, "dense": arguments.dense, **entry}, latency_line(entry)


def _calibration_tokens(model: str) -> int:
    """The mean length of the calibration data, which the report of a pruned folder has."""
    if not (Path(model) / REPORT_FILE).is_file():
        raise ValueError(f"{model} has no {REPORT_FILE} to take the length of samples from: give --tokens.")
    return PruningReport.load(model).tokens
