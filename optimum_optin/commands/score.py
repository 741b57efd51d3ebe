"""Score a model's units once and save the scores; `optin plan` and `optin prune` take them for any budget."""

from __future__ import annotations

import argparse

from ..command_line.arguments import (
    add_calibration,
    add_config,
    add_model,
    add_work,
    load_calibration,
    load_config,
    load_pruner,
    work_options,
)
from ..config import SCORING_FIELDS
from ..files.folders import check_folder
from ..publishing.rescue import check_place, save_somewhere


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `score`."""
    add_model(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to save the scores to")
    add_work(parser)
    add_calibration(parser)
    add_config(parser, (*SCORING_FIELDS, "compensation", "unreadable", "merging"))


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Score the model, and save the scores."""
    if arguments.calibration is None:
        raise ValueError("give --calibration DATA.")
    check_folder(arguments.output)
    work = work_options(arguments)
    config = load_config(arguments)
    pruner = load_pruner(arguments)
    pruner.check(config)
    scores = pruner.score(load_calibration(arguments, pruner, config), config, **work)
    output = save_somewhere(scores.save_pretrained, arguments.output)
    units = sum(len(score) for score in next(iter(scores.terms.values())).values())
    data = {
        "output": output,
        "units": units,
        "terms": list(scores.terms),
        "tokens": scores.tokens,
        "seconds": scores.seconds,
        "fingerprint": scores.fingerprint,
        "config": scores.config.to_dict(),
    }
    text = f"{units:,} units scored in {scores.seconds:.1f} s, saved to {output}"
    return check_place(output, arguments.output, (data, text))
