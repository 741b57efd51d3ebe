"""Show what budgets would keep and how far outputs would diverge, from saved scores; nothing is cut."""

from __future__ import annotations

import argparse

from ..command_line.arguments import CONFIG_FIELDS, add_config, add_model, load_config, load_pruner
from ..command_line.options import word_or_number
from ..config import BUDGETS, CHOSEN
from ..scoring import Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plan`."""
    add_model(parser)
    parser.add_argument("--scores", required=True, metavar="DIR", help="scores that `optin score` saved")
    parser.add_argument(
        "--flops",
        dest="budgets",
        type=word_or_number,
        nargs="+",
        metavar="STR|FLOAT",
        help="budgets: shares of the layers' MACs to keep, or amounts such as 6.5GMACs; default: those of the scores' "
        "configuration",
    )
    others = (name for name in CONFIG_FIELDS if name != "flops" and name.startswith(BUDGETS))
    chosen = "output_weight", "layout", "merging", "depth", "min_heads", "min_neurons", *CHOSEN
    add_config(parser, (*others, *chosen))


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """One plan per budget."""
    scores = Scores.from_pretrained(arguments.scores)
    config = load_config(arguments, scores.config)
    pruner = load_pruner(arguments)
    plans = [pruner.plan(scores, flops, config) for flops in arguments.budgets or [None]]
    return {"plans": [plan.to_dict() for plan in plans]}, "\n\n".join(map(str, plans))
