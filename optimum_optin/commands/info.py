"""Show what a pruned folder holds: structure and report. No weights are loaded."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from ..plugin import METHOD
from ..report import REPORT_FILE, PruningReport, layer_table, layers_of
from ..structure import structure_from_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What `info` takes."""
    parser.add_argument("folder", metavar="DIR", help="folder of a pruned model")


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Read the folder's JSON files."""
    folder = Path(arguments.folder)
    config = read_pruned_config(folder)
    layers = layers_of(structure_from_json(config["quantization_config"].get("structure")))
    report = PruningReport.load(folder) if (folder / REPORT_FILE).is_file() else None
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    data = {
        "folder": str(folder),
        "model_type": config.get("model_type"),
        "architecture": (config.get("architectures") or [None])[0],
        "weights_bytes": size,
        "layers": layers,
        "report": report and report.to_dict(),
    }
    heading = f"{folder}: {data['architecture']}, {size / 1e6:.1f} MB of weights, pruned with optimum-optin"
    return data, f"{heading}\n{report or layer_table(layers)}"


def read_pruned_config(folder: Path) -> dict:
    """The `config.json` of a pruned folder.

    Raises:
        FileNotFoundError: the folder holds no model.
        ValueError: the model is dense, or its `config.json` is damaged.
    """
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no model: config.json is missing.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if (config.get("quantization_config") or {}).get("quant_method") != METHOD:
        raise ValueError(f"{folder} was not pruned with optimum-optin: its config.json names no structure.")
    return config
