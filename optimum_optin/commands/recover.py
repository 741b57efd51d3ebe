"""Finish a save to a folder that was killed while it moved files, and delete what killed saves have left there."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..files.folders import recover_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `recover`."""
    parser.add_argument("folder", metavar="DIR", help="folder of a model or of scores")


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Recover."""
    finished = recover_folder(arguments.folder)
    text = "the save that was killed is finished" if finished else "no save to it was killed while it moved files"
    return {"folder": str(Path(arguments.folder)), "finished": finished}, f"{arguments.folder}: {text}"
