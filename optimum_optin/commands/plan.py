"""Show what budgets would keep and how far outputs would diverge, from saved scores; nothing is cut."""

from __future__ import annotations

import argparse

from ..command_line.arguments import add_config, add_model, load_config, load_pruner
from ..config import CHOSEN
from ..scoring import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    add_model(parser)
    parser.add_argument("--scores", required=True, metavar="DIR", help="scores that `optin score` saved")
    parser.add_argument(
        "--flops",
        dest="budgets",
        type=float,
        nargs="+",
        metavar="FLOAT",
        help="budgets: shares of the layers' MACs to keep; default: that of the scores' configuration",
    )
    add_config(parser, ("output_weight", "merging", "depth", "min_heads", "min_neurons", *CHOSEN))


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """One plan per budget."""
    scores = Scores.from_pretrained(arguments.scores)
    config = load_config(arguments, scores.config)
    pruner = load_pruner(arguments)
    plans = [pruner.plan(scores, flops, config) for flops in arguments.budgets or [None]]
    return {"plans": [plan.to_dict() for plan in plans]}, "\n\n".join(map(str, plans))
