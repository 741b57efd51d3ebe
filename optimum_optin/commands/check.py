"""Prove on one sample that a model can be pruned, group by group, or show what is in the way; nothing is cut."""

from __future__ import annotations

import argparse

from ..proving import check_architecture
from ..storage.loading import load_model
from .arguments import add_model, loading_options


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `check` takes."""
    add_model(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str, int]:
    """Check; the exit code says whether all is proved."""
    proof = check_architecture(load_model(arguments.model, arguments.task, **loading_options(arguments)))
    return proof.to_dict(), str(proof), 0 if proof.proved else 1
