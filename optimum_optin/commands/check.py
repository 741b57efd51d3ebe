"""Prove on one sample that a model can be pruned, group by group, or show what is in the way; nothing is cut."""

from __future__ import annotations

import argparse

from ..command_line.arguments import add_model, loading_options
from ..proving import check_architecture
from ..storage.loading import load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes."""
    add_model(parser)
    parser.add_argument(
        "--reload", action="store_true", help="also save a copy that is cut to half, load it again and compare"
    )


def run(arguments: argparse.Namespace) -> tuple[dict, str, int]:
    """Check; the exit code says whether all is proved."""
    model = load_model(arguments.model, arguments.task, **loading_options(arguments))
    proof = check_architecture(model, reload=arguments.reload)
    return proof.to_dict(), str(proof), 0 if proof.proved else 1
