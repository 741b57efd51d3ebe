"""What the scripts of one task share: their arguments, their rows, and a metric before and after pruning."""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from datasets import Dataset
from transformers.utils import logging

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.reading.sources import read_calibration


def read_arguments(description: str, model: str, data: str) -> argparse.Namespace:
    """The command line; `model` and `data` are the defaults."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=model, help="Hub id or folder (default: %(default)s)")
    parser.add_argument(
        "--data",
        default=data,
        help="a .csv, .tsv, .json, .jsonl or .parquet file, half of which is measured on, or a folder or Hub data set "
        "(name or name:configuration) with splits train and validation (default: %(default)s)",
    )
    parser.add_argument("--flops", type=float, default=0.6, help="share of MACs to keep (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=512, help="rows to calibrate on (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1000, help="rows to measure on (default: %(default)s)")
    parser.add_argument("--save-dir", type=Path, default=Path("outputs/pruned"), help="(default: %(default)s)")
    return parser.parse_args()


def prune_and_measure(arguments: argparse.Namespace, task: str, prepare: Callable, measure: Callable) -> None:
    """Prune, save, reload, and print the metric of the dense and of the reloaded model.

    Args:
        arguments: from `read_arguments`.
        task: as `OptinPruner.from_pretrained` takes it.
        prepare: (rows, processor) -> what `OptinPruner.prune` calibrates on.
        measure: (model, processor, rows) -> the metric.
    """
    logging.set_verbosity_error()
    pruner = OptinPruner.from_pretrained(arguments.model, task=task)
    calibration, evaluation = load_rows(arguments.data)
    calibration = calibration.shuffle(seed=0).select(range(min(arguments.samples, len(calibration))))
    evaluation = evaluation.select(range(min(arguments.rows, len(evaluation))))

    config = OptinConfig(flops=arguments.flops, num_samples=arguments.samples)
    pruner.prune(prepare(calibration, pruner.processor), config, save_dir=arguments.save_dir)
    print(pruner.report)
    reloaded = type(pruner.model).from_pretrained(arguments.save_dir).to(pruner.model.device)
    with torch.inference_mode():
        dense, pruned = (measure(model, pruner.processor, evaluation) for model in (pruner.model, reloaded))
    print(f"{measure.__name__}, {len(evaluation)} rows: {dense:.1%} -> {pruned:.1%}; saved in {arguments.save_dir}")


def load_rows(data: str) -> tuple[Dataset, Dataset]:
    """Rows to calibrate on and rows to measure on; see `--data`."""
    if Path(data).is_file():
        halves = read_calibration(data).train_test_split(0.5, seed=0)
        return halves["train"], halves["test"]
    return read_calibration(data), read_calibration(data, split="validation")


def batches(rows: Dataset, size: int = 16):
    """Dicts of columns of `size` rows each."""
    return rows.iter(batch_size=size)


def class_index(label: int | str, names: list[str] | None, model) -> int:
    """The model's index of a class that the data give as a number (with `names` or without; cells of CSV and TSV are
    strings) or by name.
    """
    name = names[label] if names and isinstance(label, int) else label
    index = model.config.label2id.get(name, label)
    return int(index) if isinstance(index, str) and index.isdecimal() else index
