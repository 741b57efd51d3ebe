"""Prune a model to many budgets from one scoring, measure and time each, and save a table, a picture and the models."""

from __future__ import annotations

import argparse

from ..command_line.arguments import (
    CONFIG_FIELDS,
    add_calibration,
    add_config,
    add_model,
    add_work,
    load_calibration,
    load_config,
    load_pruner,
)
from ..command_line.options import budget_word, given
from ..config import BUDGETS
from ..files.folders import check_folder
from ..scoring import Scores
from ..sweeping.budgets import DEFAULT

_TIMING = {"timed_batch_size": "batch_size", "timed_tokens": "tokens", "repeats": "repeats"}  # by their names in Python


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `sweep`."""
    add_model(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to save to")
    parser.add_argument(
        "--budgets",
        type=budget_word,
        nargs="+",
        default=DEFAULT,
        metavar="BUDGET",
        help=f"shares of the FLOPs (0.5), numbers with a unit (50M parameters, 100MB on disk), or several of "
        f"{', '.join(BUDGETS)} that all hold (params=50M,flops=0.7); default: {' '.join(map(str, DEFAULT))}",
    )
    parser.add_argument("--scores", metavar="DIR", help="scores that `optin score` saved, instead of scoring again")
    parser.add_argument(
        "--evaluate",
        metavar="TASK",
        help="a task to measure on (glue/sst2, ...), or a metric on held-out calibration samples (agreement, "
        "divergence, perplexity); default: agreement",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of the task's data; of GLUE, its TSV files")
    parser.add_argument("--max-samples", type=int, metavar="INT", help="samples to measure on at most; default: all")
    parser.add_argument(
        "--max-drop",
        type=float,
        metavar="FLOAT",
        help="save the smallest model that loses no more than this in what is measured, and no other",
    )
    parser.add_argument("--table-only", action="store_true", help="save the table and the picture, and no model")
    timing = parser.add_argument_group("timing (all models take turns)")
    for name, text in (
        ("--timed-batch-size", "samples per forward pass; default: 8"),
        ("--timed-tokens", "their length; default: the calibration data's mean"),
        ("--repeats", "timed runs of each model, 0 for none; default: 15"),
    ):
        timing.add_argument(name, type=int, default=argparse.SUPPRESS, metavar="INT", help=text)
    add_work(parser)
    add_calibration(parser)
    add_config(parser, [name for name in CONFIG_FIELDS if name not in BUDGETS])


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Sweep, and save; what can be refused is refused before the long part."""
    if arguments.calibration is None and not arguments.scores:
        raise ValueError("give --calibration DATA, or --scores DIR.")
    if arguments.table_only and arguments.max_drop is not None:
        raise ValueError("--max-drop says which model to save, and --table-only saves none: give one of them.")
    check_folder(arguments.output)
    scores = Scores.from_pretrained(arguments.scores) if arguments.scores else None
    config = load_config(arguments, scores.config if scores else None)
    pruner = load_pruner(arguments)
    pruner.check(config)
    sweep = pruner.sweep(
        load_calibration(arguments, pruner, config),
        arguments.budgets,
        config,
        scores=scores,
        evaluate=_evaluate(arguments),
        max_drop=arguments.max_drop,
        save_dir=None if arguments.table_only else arguments.output,
        **{_TIMING[name]: value for name, value in given(arguments, tuple(_TIMING)).items()},
        **given(arguments, ("work_dir",)),
    )
    if arguments.table_only:
        sweep.save(arguments.output)
    saved = [point.folder for point in sweep.points if point.folder is not None]
    text = "\n".join([str(sweep), *(f"saved to {folder}" for folder in (arguments.output, *saved))])
    return {"output": arguments.output, **sweep.to_dict()}, text


def _evaluate(arguments: argparse.Namespace) -> dict | str | None:
    """What `OptinPruner.sweep` takes as `evaluate=`."""
    options = {name: getattr(arguments, name) for name in ("data_dir", "max_samples")}
    options = {name: value for name, value in options.items() if value is not None}
    if options and arguments.evaluate is None:
        raise ValueError("--data-dir and --max-samples are of a task: give --evaluate TASK as well.")
    return {"task": arguments.evaluate, **options} if options else arguments.evaluate
