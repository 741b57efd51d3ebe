"""Arguments that several commands share, and the objects that they stand for."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedModel

from ..config import BUDGETS, PRESETS, OptinConfig
from ..files.folders import check_folder
from ..pruner import OptinPruner
from ..publishing.pruned_folders import read_report
from ..reading.sources import find_source, read_calibration
from ..report import REPORT_FILE, PruningReport
from ..storage.loading import load_model
from .options import add_options, given, word_or_numbers

CONFIG_FIELDS = tuple(field.name for field in dataclasses.fields(OptinConfig))

# Options of `from_pretrained`, with a word on each; transformers documents them.
_LOADING = {
    "revision": "branch, tag or commit of the model on the Hub.",
    "subfolder": "folder of the model inside its folder or repository.",
    "cache_dir": "where downloads are kept.",
    "token": "Hub token, if it is not the one you are logged in with.",
    "dtype": "type of the weights, e.g. bfloat16.",
    "device_map": "where to put the weights, e.g. auto.",
}


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the model, and how to load it."""
    parser.add_argument("model", metavar="MODEL", help="local folder or Hub id of the model")
    parser.add_argument(
        "--task", help="e.g. text-classification or feature-extraction; default: the class that the checkpoint names"
    )
    add_loading(parser)


def add_loading(parser: argparse.ArgumentParser) -> None:
    """Add the options for loading a model."""
    group = parser.add_argument_group("loading")
    for name, text in _LOADING.items():
        group.add_argument(f"--{name.replace('_', '-')}", default=argparse.SUPPRESS, metavar="STR", help=text)
    group.add_argument(
        "--trust-remote-code", action="store_true", default=argparse.SUPPRESS, help="run the model's own code."
    )


def loading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for `from_pretrained` that the user gave."""
    return given(arguments, (*_LOADING, "trust_remote_code"))


def add_comparison(parser: argparse.ArgumentParser, required: bool) -> None:
    """Add the dense model to compare with, and whether the folder is to keep the figures."""
    parser.add_argument("--dense", required=required, metavar="DENSE", help="local folder or Hub id of the dense model")
    parser.add_argument(
        "--update", action="store_true", help="note the figures in the pruned folder's report and model card"
    )


def load_dense(arguments: argparse.Namespace) -> PreTrainedModel:
    """Load the dense model that was named; revision and subfolder are the pruned one's, and are not used."""
    loading = loading_options(arguments)
    return load_model(
        arguments.dense, None, **{name: loading[name] for name in loading if name not in ("revision", "subfolder")}
    )


def report_to_update(arguments: argparse.Namespace) -> PruningReport | None:
    """The pruned folder's report if it is to be updated, else `None`.

    Raises:
        ValueError: the folder has no report, or there is no dense model to compare with.
        OSError: see `check_folder`.
    """
    if not arguments.update:
        return None
    if arguments.dense is None:
        raise ValueError("--update needs --dense DENSE, the model to compare with.")
    report = read_report(arguments.model)
    if report is None:
        raise ValueError(f"--update needs a folder that `optin prune` saved: {arguments.model} has no {REPORT_FILE}.")
    check_folder(arguments.model)
    return report


def load_pruner(arguments: argparse.Namespace) -> OptinPruner:
    """The pruner of the model that was named."""
    return OptinPruner.from_pretrained(arguments.model, arguments.task, **loading_options(arguments))


def add_calibration(parser: argparse.ArgumentParser) -> None:
    """Add the calibration data."""
    group = parser.add_argument_group("calibration data (no labels needed)")
    group.add_argument(
        "--calibration",
        metavar="DATA",
        help="data set on the Hub (nyu-mll/glue:sst2 names its configuration, too), a CSV, TSV, JSON, JSONL, Parquet "
        "or text file, an image or a sound, or a folder of such files",
    )
    group.add_argument("--calibration-config", metavar="NAME", help="configuration of the data set on the Hub")
    group.add_argument("--calibration-split", metavar="NAME", default="train", help="its split; default: train")
    group.add_argument(
        "--text-columns",
        nargs="+",
        metavar="NAME",
        help="one or two columns that hold the text (of an encoder-decoder, what is read and what is to be written); "
        "default: known names, else the only column that looks like text",
    )


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the folder of unfinished work."""
    parser.add_argument(
        "--work-dir",
        default=argparse.SUPPRESS,
        metavar="DIR",
        help="folder in which unfinished scores are kept, every minute: the same command goes on from there after it "
        "was killed, and ends as it would have",
    )


def work_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments for `score` and `prune` that the user gave.

    Raises:
        ValueError: there is nothing to score.
        OSError: see `check_folder`.
    """
    options = given(arguments, ("work_dir",))
    if options and getattr(arguments, "scores", None) is not None:
        raise ValueError("--work-dir is for scoring, and --scores leave nothing to score: give one of them.")
    for folder in options.values():
        check_folder(folder)
    return options


def load_calibration(arguments: argparse.Namespace, pruner: OptinPruner, config: OptinConfig):
    """The calibration data that were named; `None` if none were."""
    if arguments.calibration is None:
        return None
    place, config_name = find_source(arguments.calibration, arguments.calibration_config)
    if isinstance(place, str):
        # By the pruner: its report and card then say what was drawn.
        return pruner.get_calibration_dataset(
            place,
            config_name,
            split=arguments.calibration_split,
            num_samples=config.num_samples,
            seed=config.seed,
            text_columns=arguments.text_columns,
        )
    return read_calibration(place, config_name, split=arguments.calibration_split, text_columns=arguments.text_columns)


def add_config(parser: argparse.ArgumentParser, names: Sequence[str] = CONFIG_FIELDS) -> None:
    """Add fields of `OptinConfig` as options."""
    group = parser.add_argument_group("pruning")
    group.add_argument(
        "--preset", choices=sorted(PRESETS), help="a setting by name (paper: that of the paper); options change it"
    )
    add_options(group, OptinConfig, names)
    if "merging" in names:  # it is taken by its earlier name, too
        group.add_argument("--tokens", type=word_or_numbers, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def load_config(arguments: argparse.Namespace, default: OptinConfig | None = None) -> OptinConfig:
    """The configuration with the fields that the user gave, or a preset has; the others are those of `default`."""
    fields = {**PRESETS.get(arguments.preset, {}), **given(arguments, CONFIG_FIELDS)}
    if any(name in fields for name in BUDGETS):  # in the place of all budgets of `default`
        fields = {**dict.fromkeys(BUDGETS), **fields}
    if "tokens" in arguments:  # it must not be compared with what `default` says of merging
        fields["merging"] = OptinConfig(**given(arguments, ("merging", "tokens"))).merging
    return dataclasses.replace(default or OptinConfig(), **fields)
