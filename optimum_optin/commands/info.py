"""Show the structure and the report of a pruned folder. No weights are loaded."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..merging.schedule import TokenSchedule
from ..publishing.card import weight_bytes
from ..publishing.pruned_folders import read_config, read_report
from ..report import check_listed, layer_table, layers_of
from ..storage.structure import structure_from_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    parser.add_argument("folder", metavar="DIR", help="folder of a pruned model")


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Read the folder's JSON files."""
    folder = Path(arguments.folder)
    config, report = read_config(folder), read_report(folder)
    layers = report.layers if report else layers_of(structure_from_json(config["quantization_config"].get("structure")))
    check_listed(layers)
    schedule = (config.get("quantization_config") or {}).get("tokens")
    merges = TokenSchedule.from_json(schedule).to_json()["merges"] if schedule else {}
    size = weight_bytes(folder)
    names = config.get("architectures")
    data = {
        "folder": str(folder),
        "model_type": config.get("model_type"),
        "architecture": names[0] if names and isinstance(names, list) else None,
        "weights_bytes": size,
        "layers": layers,
        "merges": merges,
        "report": report and report.to_dict(),
    }
    heading = f"{folder}: {data['architecture']}, {size / 1e6:.1f} MB of weights, pruned with optimum-optin"
    return data, f"{heading}\n{report or layer_table(layers, merges)}"
