"""Export a model to ONNX, torch.export or OpenVINO, and check that the export does what the model does."""

from __future__ import annotations

import argparse

from ..command_line.arguments import add_loading, loading_options
from ..exporting.export import QUANTIZED, check_export, export_model
from ..exporting.formats import FORMATS
from ..reading.sources import find_source, read_calibration
from ..storage.loading import load_model

_SAMPLES = 48


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `export`."""
    parser.add_argument("model", metavar="MODEL", help="local folder or Hub id of the model, pruned or dense")
    parser.add_argument("output", metavar="OUT", help="folder to write; new, empty, or with an earlier such export")
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="what to export to")
    parser.add_argument(
        "--quantize",
        choices=QUANTIZED,
        help="make weights of 8 bits of the ONNX file afterwards, by ONNX Runtime, with activations quantized as they "
        "come; what that changes is told",
    )
    parser.add_argument(
        "--task", help="e.g. text-classification or feature-extraction; default: the class that the checkpoint names"
    )
    group = parser.add_argument_group("samples to check on (no labels needed; default: made up)")
    group.add_argument("--data", metavar="DATA", help="a file, a folder of files, or a data set on the Hub")
    group.add_argument("--data-config", metavar="NAME", help="configuration of the data set on the Hub")
    group.add_argument("--data-split", metavar="NAME", default="validation", help="its split; default: validation")
    group.add_argument("--text-columns", nargs="+", metavar="NAME", help="one or two columns that hold the text")
    group.add_argument(
        "--num-samples", type=int, default=_SAMPLES, metavar="INT", help=f"how many at most; default: {_SAMPLES}"
    )
    add_loading(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Load the model, export it, and say how far the export is from it."""
    check_export(arguments.output, arguments.to, arguments.quantize)
    data = None
    if arguments.data is not None:
        place, config_name = find_source(arguments.data, arguments.data_config)
        data = read_calibration(place, config_name, split=arguments.data_split, text_columns=arguments.text_columns)
    model = load_model(arguments.model, arguments.task, **loading_options(arguments))
    made = export_model(
        model,
        arguments.output,
        arguments.to,
        data=data,
        quantize=arguments.quantize,
        num_samples=arguments.num_samples,
    )
    return {"model": arguments.model, "output": arguments.output, **made.to_dict()}, str(made)
