"""Arguments that several commands share, and what they stand for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from ..config import OptinConfig
from ..pruner import OptinPruner
from ..sources import read_calibration
from .options import add_options, given

CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(OptinConfig))

# Options of `from_pretrained`; what they mean is said there, not here.
_LOADING = {
    "revision": "branch, tag or commit of the model on the Hub.",
    "subfolder": "folder inside the model's.",
    "cache_dir": "where downloads are kept.",
    "token": "Hub token, if it is not the one you are logged in with.",
    "dtype": "type of the weights, e.g. bfloat16.",
    "device_map": "where to put the weights, e.g. auto.",
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """The model and how to load it."""
    parser.add_argument("model", metavar="MODEL", help="local folder or Hub id of the model")
    parser.add_argument(
        "--task", help="e.g. text-classification or feature-extraction; default: the class that the checkpoint names"
    )
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """How to load a model."""
    group = parser.add_argument_group("loading")
    for name, text in _LOADING.items():
        group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="STR", help=text)
    group.add_argument(
        "--trust-remote-code", action="store_true", default=argparse.SUPPRESS, help="run the model's own code."
    )


def loading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained`."""
    return given(arguments, (*_LOADING, "trust_remote_code"))


def load_pruner(arguments: argparse.Namespace) -> OptinPruner:
    """The pruner of the model named."""
    return OptinPruner.from_pretrained(arguments.model, arguments.task, **loading_options(arguments))


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """The calibration data."""
    group = parser.add_argument_group("calibration data (no labels needed)")
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help="data set on the Hub (nyu-mll/glue:sst2 names its configuration, too), a CSV, TSV, JSON, JSONL, Parquet "
        "or text file, an image, or a folder of such files or of images",
    )
    group.add_argument("--calibration-config", metavar="NAME", help="configuration of the data set on the Hub")
    group.add_argument("--calibration-split", metavar="NAME", default="train", help="its split; default: train")
    group.add_argument("--text-columns", nargs="+", metavar="NAME", help="one or two columns that hold the text")


def load_calibration(arguments: argparse.Namespace):
    """The calibration data named, `None` if none are."""
    if arguments.calibration is None:
        return None
    return read_calibration(
        arguments.calibration,
        arguments.calibration_config,
        split=arguments.calibration_split,
        text_columns=arguments.text_columns,
    )


def add_config(parser: argparse.ArgumentParser, names: Sequence[str] = CONFIG_FIELDS) -> None:
    """Fields of `OptinConfig`."""
    add_options(parser.add_argument_group("pruning"), OptinConfig, names)


def load_config(arguments: argparse.Namespace, default: OptinConfig | None = None) -> OptinConfig:
    """The fields given, and for the others those of `default`."""
    return dataclasses.replace(default or OptinConfig(), **given(arguments, CONFIG_FIELDS))
