"""Show the structure and the report of a pruned folder, and verify its weights with --verify. No model is loaded."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..digests.verification import verify
from ..merging.schedule import TokenSchedule
from ..publishing.card import weight_bytes
from ..publishing.pruned_folders import read_config, read_report
from ..report import check_listed, layer_table, layers_of
from ..storage.entry import METHOD, STRUCTURE_FILE, OptinStructureConfig
from ..storage.structure import structure_from_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `info`."""
    parser.add_argument("folder", metavar="DIR", help="folder of a pruned model")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="read all weights, and compare them with the digest and the hashes that were noted when they were saved",
    )


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Read the folder's JSON files, and its weights if they are to be verified."""
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
    if arguments.verify:
        data["verified_tensors"] = count = _verified(folder, config)
        heading = f"{heading}\nverified: {count} tensors hold what was saved"
    return data, f"{heading}\n{report or layer_table(layers, merges)}"


def _verified(folder: Path, config: Mapping[str, Any]) -> int:
    entry = config.get("quantization_config") or {}
    module = (folder / STRUCTURE_FILE).is_file()
    free = OptinStructureConfig(**entry).to_dict() if module or entry.get("quant_method") == METHOD else None
    return verify(folder, free, STRUCTURE_FILE if module else "config.json")
