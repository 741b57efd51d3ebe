"""Prune a model in one shot, without training, and save the smaller one with its processor, report and model card."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from huggingface_hub import CommitInfo
from transformers.utils import logging

from ..command_line.arguments import (
    add_calibration,
    add_config,
    add_model,
    add_work,
    load_calibration,
    load_config,
    load_pruner,
    work_options,
)
from ..command_line.options import given
from ..config import BUDGETS, OptinConfig
from ..evaluation.comparison import check_task
from ..files.folders import NotSavedError, check_folder
from ..pruner import OptinPruner
from ..publishing.hub import check_push
from ..publishing.rescue import check_place, save_bare, save_or_none, save_somewhere
from ..running.processes import is_main, process_count
from ..scoring import Scores

logger = logging.get_logger(__name__)

ALLOWED = ("max_drop", "metric")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `prune`."""
    add_model(parser)
    parser.add_argument("--output", metavar="DIR", help="folder to save to; needed unless --dry-run")
    parser.add_argument("--scores", metavar="DIR", help="scores that `optin score` saved, instead of scoring again")
    parser.add_argument("--dry-run", action="store_true", help="show what would be kept; cuts and writes nothing")
    parser.add_argument(
        "--evaluate", nargs="+", default=(), metavar="TASK", help="tasks to measure before and after (glue/sst2, ...)"
    )
    parser.add_argument(
        "--data-dir",
        metavar="DIR",
        help="folder of their data, for --evaluate; of GLUE, its TSV files (SST-2/dev.tsv, ...)",
    )
    parser.add_argument(
        "--max-drop",
        type=float,
        default=argparse.SUPPRESS,
        metavar="FLOAT",
        help="how much the model may lose, instead of --flops: the smallest of six budgets that loses no more is taken",
    )
    parser.add_argument(
        "--metric",
        default=argparse.SUPPRESS,
        metavar="STR",
        help="in what it may lose it: agreement with the dense model (default), divergence, or perplexity (a share)",
    )
    parser.add_argument("--benchmark", action="store_true", help="time the dense model against the pruned one")
    parser.add_argument("--push-to-hub", metavar="REPO_ID", help="repository to upload the result to")
    parser.add_argument(
        "--private", action="store_true", default=None, help="make that repository private, if it is created"
    )
    add_work(parser)
    add_calibration(parser)
    add_config(parser)


def run(arguments: argparse.Namespace) -> tuple[dict, str]:
    """Prune, save and, if asked, measure and upload; what can be refused is refused before the long part."""
    if arguments.output is None and not arguments.dry_run:
        raise ValueError("give --output DIR to save to, or --dry-run.")
    if arguments.calibration is None and arguments.scores is None:
        raise ValueError("give --calibration DATA, or --scores DIR of an earlier `optin score`.")
    allowed = given(arguments, ALLOWED)
    if "max_drop" not in allowed and "metric" in allowed:
        raise ValueError("--metric says in what --max-drop is counted: give that as well.")
    if allowed and arguments.dry_run:
        raise ValueError("--max-drop cuts and refits several times to see what is lost: it takes no --dry-run.")
    asked = [f"--{name}" for name in BUDGETS if name in vars(arguments)]
    if "max_drop" in allowed and asked:
        raise ValueError(f"{' and '.join(asked)} and --max-drop both say how small the model is to be: give one.")
    if arguments.output is not None:
        check_folder(arguments.output)
    work = work_options(arguments)
    token = getattr(arguments, "token", None)
    if arguments.push_to_hub is not None:
        check_push(arguments.push_to_hub, token=token, revision=None, create_pr=False)
    scores = Scores.from_pretrained(arguments.scores) if arguments.scores else None
    config = load_config(arguments, scores.config if scores else None)
    pruner = load_pruner(arguments)
    pruner.check(config)
    calibration = load_calibration(arguments, pruner, config)
    if arguments.dry_run:
        plan = pruner.plan(scores or pruner.score(calibration, config, **work), config=config)
        return plan.to_dict(), str(plan)

    for task in arguments.evaluate:
        check_task(pruner.model, pruner.processor, task, data_dir=arguments.data_dir)
    pruner.check_save_directory(arguments.output)
    output = _prune(pruner, calibration, config, scores, output=arguments.output, options={**allowed, **work})
    commit = None
    try:
        if arguments.evaluate or arguments.benchmark:
            output = _measure(pruner, arguments, output)
        if arguments.push_to_hub is not None:
            commit = pruner.push_to_hub(arguments.push_to_hub, private=arguments.private, token=token)
    except Exception as error:
        raise NotSavedError(f"{error} (the pruned model is saved in {output})", _result(pruner, output)) from error
    return check_place(output, arguments.output, _result(pruner, output, commit))


def _prune(
    pruner: OptinPruner,
    calibration: Any,
    config: OptinConfig,
    scores: Scores | None,
    *,
    output: str,
    options: dict[str, Any],
) -> str:
    """Prune and save, and return the folder; if that fails, save what there is."""
    try:
        pruner.prune(calibration, config, scores=scores, **options)
        return save_somewhere(pruner.save_pretrained, output)
    except Exception as error:
        if is_main():
            _keep(pruner, scores is None, output, error)
        raise


def _keep(pruner: OptinPruner, scored: bool, output: str, error: Exception) -> None:
    """Save what a failed pruning left, without waiting for other processes, which may be gone.

    Raises:
        NotSavedError: the model is saved, but without report and card.
    """
    if pruner.pruned_model is not None and (
        place := save_or_none(partial(save_bare, pruner.pruned_model, pruner.processor), output)
    ):
        result = _result(pruner, place) if pruner.report else ({"output": place}, f"saved to {place}")
        raise NotSavedError(
            f"{error} (the pruned model is saved in {place}, without report and card)", result
        ) from error
    if scored and pruner.scores is not None:
        place = save_or_none(pruner.scores.write, f"{output}-scores")
        logger.warning(f"the scores are saved in {place}: --scores takes them." if place else "the scores are lost.")


def _measure(pruner: OptinPruner, arguments: argparse.Namespace, output: str) -> str:
    """Measure and save the figures, even if a later one fails; return the folder."""
    try:
        for task in arguments.evaluate:
            pruner.evaluate(task, data_dir=arguments.data_dir)
        if arguments.benchmark:
            pruner.benchmark()
    except Exception:
        if process_count() == 1:  # the others may be waiting for something else
            save_somewhere(pruner.save_pretrained, output)
        raise
    return save_somewhere(pruner.save_pretrained, output)


def _result(pruner: OptinPruner, output: str, commit: CommitInfo | None = None) -> tuple[dict, str]:
    data, text = {"output": output}, f"{pruner.report}\nsaved to {output}"
    if commit is not None:  # the main process uploads
        data["url"] = commit.commit_url
        text += f"\npushed to {commit.commit_url}"
    return {**data, **pruner.report.to_dict()}, text
