"""Measure a pruned model against the dense one, side by side in one process: speed, memory, size on disk, time to load.

Every form (--variants) of both models is compared with eager mode first; one whose outputs are not the model's is
called WRONG and not timed. --revision and --subfolder are the pruned model's.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from transformers import PreTrainedModel

from ..benchmarking import Benchmark, run_benchmark
from ..benchmarking.plot import check_plot, save_plot
from ..benchmarking.variants import variants_named
from ..command_line.arguments import add_comparison, add_loading, load_dense, loading_options, report_to_update
from ..command_line.options import add_options, given
from ..files.folders import NotSavedError, check_folder
from ..inputs.modalities import likely_modality
from ..publishing.pruned_folders import read_report
from ..publishing.rescue import note_figures
from ..reading.sources import read_calibration
from ..report import REPORT_FILE
from ..storage.loading import load_model, load_processor

_OPTIONS = ("tokens", "batch_size", "variants", "repeats", "threads", "new_tokens", "num_samples", "text_columns")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `benchmark`."""
    parser.add_argument("--model", required=True, metavar="PRUNED", help="local folder or Hub id of the pruned model")
    add_comparison(parser, required=True)
    add_options(parser, run_benchmark, _OPTIONS)
    parser.add_argument(
        "--data",
        metavar="DATA",
        help="measure batches of this data set, too, padded as a Trainer pads them: a file, a folder or a Hub id, as "
        "for `optin prune --calibration`; outputs are compared on it",
    )
    parser.add_argument("--data-split", metavar="NAME", default="train", help="its split; default: train")
    parser.add_argument("--output", metavar="FILE", help="write all that was measured there, as JSON")
    parser.add_argument("--plot", metavar="FILE", help="draw the speedups there (PNG, SVG, PDF); needs matplotlib")
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load both models and measure them."""
    _check_files(arguments)
    variants_named(getattr(arguments, "variants", ()))  # before models are loaded
    report = report_to_update(arguments)
    options = given(arguments, _OPTIONS)
    if "tokens" not in options:
        options["tokens"] = _calibration_tokens(arguments.model)
    pruned = load_model(arguments.model, None, **loading_options(arguments))
    dense = load_dense(arguments)
    if arguments.data is not None:
        options |= _data(arguments, pruned)
    found = run_benchmark(dense, pruned, **options)
    entry = found.latency
    result = (
        {"model": arguments.model, "dense": arguments.dense, **entry, "benchmark": found.to_dict()},
        f"{found}\n\n{entry}",
    )
    _write(arguments, found, result)
    if report is not None:
        note_figures(arguments.model, dataclasses.replace(report, latency=entry), result)
    return result


def _check_files(arguments: argparse.Namespace) -> None:
    """Raise if what was measured could not be written."""
    if arguments.plot is not None:
        check_plot(arguments.plot)
    for file in (arguments.output, arguments.plot):
        if file is not None:
            if Path(file).is_dir():
                raise ValueError(f"{file} is a folder: name a file in it.")
            check_folder(Path(file).absolute().parent)


def _data(arguments: argparse.Namespace, model: PreTrainedModel) -> dict:
    """The options that data come by."""
    processor = load_processor(arguments.model, likely_modality(model), **loading_options(arguments))
    return {"data": read_calibration(arguments.data, split=arguments.data_split), "processor": processor}


def _write(arguments: argparse.Namespace, found: Benchmark, result: tuple[dict, str]) -> None:
    """Write the files that were asked for.

    Raises:
        NotSavedError: one could not be written; the result is printed all the same.
    """
    for file, write in ((arguments.output, found.save), (arguments.plot, lambda path: save_plot(found, path))):
        if file is not None:
            try:
                Path(file).absolute().parent.mkdir(parents=True, exist_ok=True)
                write(file)
            except OSError as error:
                raise NotSavedError(f"could not write {file}: {error}", result) from error


def _calibration_tokens(model: str) -> int:
    """The mean length of the calibration data, from the report in a pruned folder."""
    report = read_report(model)
    if report is None:
        raise ValueError(f"{model} has no {REPORT_FILE} to take the length of samples from: give --tokens.")
    return report.tokens
