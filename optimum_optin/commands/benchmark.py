"""Time a pruned model against the dense one, side by side in one run.

--revision and --subfolder are the pruned model's.
"""

from __future__ import annotations

import argparse
import dataclasses

from ..command_line.arguments import add_comparison, add_loading, load_dense, loading_options, report_to_update
from ..command_line.options import add_options, given
from ..evaluation.latency import latency_entry
from ..publishing.pruned_folders import read_report
from ..publishing.rescue import note_figures
from ..report import REPORT_FILE
from ..storage.loading import load_model

_OPTIONS = ("tokens", "batch_size", "repeats")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `benchmark`."""
    parser.add_argument("--model", required=True, metavar="PRUNED", help="local folder or Hub id of the pruned model")
    add_comparison(parser, required=True)
    add_options(parser, latency_entry, _OPTIONS)
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load both models and time them."""
    report = report_to_update(arguments)
    options = given(arguments, _OPTIONS)
    if "tokens" not in options:
        options["tokens"] = _calibration_tokens(arguments.model)
    pruned = load_model(arguments.model, None, **loading_options(arguments))
    entry = latency_entry(load_dense(arguments), pruned, **options)
    result = {"model": arguments.model, "dense": arguments.dense, **entry}, str(entry)
    if report is not None:
        note_figures(arguments.model, dataclasses.replace(report, latency=entry), result)
    return result


def _calibration_tokens(model: str) -> int:
    """The mean length of the calibration data, from the report in a pruned folder."""
    report = read_report(model)
    if report is None:
        raise ValueError(f"{model} has no {REPORT_FILE} to take the length of samples from: give --tokens.")
    return report.tokens
