"""The course of a sweep: models are pruned in walks of several, saved, measured as they load, and timed in turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..architectures.group import Groups
from ..config import BUDGETS, OptinConfig
from ..figures import HubModel, Latency
from ..passes.calibration import Calibration
from ..pipeline import STAGES, prune_models, report_of
from ..report import layers_of
from ..running.batch import digest_of
from ..scoring import Scores
from ..scoring.fingerprint import work_of
from ..stages.progress import plan_rest, progress, stage
from ..storage.entry import structure_of_model
from ..storage.structure import compose, structure_of
from .asked import Asked
from .budgets import Budget
from .kept import Kept, by_main, metrics_of
from .points import DENSE, Timing, dense_point, point_of
from .room import models_at_once, parts_that_fit
from .sweep import Sweep
from .times import is_timed, times_of
from .yardsticks import Yardstick

EVALUATION, TIMING = ("evaluation", 5.0), ("timing", 2.0)
"""Stages beside those of `pipeline.STAGES`, for each model."""


@dataclass(frozen=True)
class Course:
    """What a sweep goes by.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        calibration: its calibration; may be `None` if nothing is refitted, and a task or a function measures.
        asked: what is measured.
        timing: how models are timed; `None` if they are not.
        base: the dense model on the Hub; `None` if it came from elsewhere.
    """

    model: nn.Module
    groups: Groups
    scores: Scores
    calibration: Calibration | None
    asked: Asked
    timing: Timing | None
    base: HubModel | None


def identity_of(course: Course, config: OptinConfig) -> dict[str, Any]:
    """All that pruned models and what is measured of them depend on but their budgets, by names that a user knows.

    Args:
        course: see `Course`.
        config: the configuration, whose budgets are left out.
    """
    calibration = course.calibration or Calibration((), (), course.scores.tokens)
    scores = {f"{term}/{key}": each for term, by_key in course.scores.terms.items() for key, each in by_key.items()}
    identity = {
        **{name: value for name, value in config.to_dict().items() if name not in BUDGETS},
        **work_of(course.model, course.groups, calibration, config),
        "scores": digest_of([scores]),
        **course.asked.identity,
    }
    return json.loads(json.dumps(identity))  # as it is read again


def stages_of(models: int) -> list[tuple[str, float]]:
    """What so many models go through, as far as that is known before the data are read; see `run_of`."""
    return [*_walk_stages(models), *_last_stages(models)]


def run(course: Course, budgets: Sequence[Budget], kept: Kept) -> Sweep:
    """Prune to all budgets, measure and time; what is kept already is not done again.

    Args:
        course: see `Course`.
        budgets: the budgets.
        kept: where models are kept, which are there afterwards.
    """
    left = by_main(lambda: [budget.name for budget in budgets if kept.report(budget.name) is None])
    missing = [budget for budget in budgets if budget.name in left]
    refits = budgets[0].config.compensation == "ridge"
    most = models_at_once(course.model, course.groups, course.calibration, refits=refits)
    walks = [missing[first : first + most] for first in range(0, len(missing), most)]
    plan_rest([EVALUATION, *(each for walk in walks for each in _walk_stages(len(walk))), *_last_stages(len(budgets))])
    with stage(EVALUATION[0]):
        yardstick = _yardstick(course, kept)
    for walk in walks:
        _prune(course, walk, kept)
    names = by_main(lambda: [budget.name for budget in budgets if kept.noted(budget.name) is None])
    with stage(EVALUATION[0]):
        for name in progress(names, "evaluation", "model"):
            by_main(lambda name=name: _measure(course, yardstick, kept, name))
    with stage(TIMING[0]):
        times = _time(course, [budget.name for budget in budgets], kept)
    return by_main(lambda: _sweep(course, yardstick, budgets, kept, times))


def _walk_stages(models: int) -> list[tuple[str, float]]:
    """What a walk of so many models goes through."""
    return [(name, models * time) for name, time in STAGES]


def _last_stages(models: int) -> list[tuple[str, float]]:
    """What so many models go through after all walks."""
    return [(name, models * time) for name, time in (EVALUATION, TIMING)]


def _yardstick(course: Course, kept: Kept) -> Yardstick:
    """What measures models; the dense one is measured, unless it was before."""
    known = by_main(lambda: kept.noted(DENSE))
    yardstick = course.asked.yardstick(course.model, course.calibration, known)
    by_main(lambda: kept.note(DENSE, yardstick.dense))
    return yardstick


def _prune(course: Course, walk: Sequence[Budget], kept: Kept) -> None:
    """Prune to some budgets in one walk, and save what comes of it."""
    configs = [budget.config for budget in walk]
    given = course.model, course.groups, course.scores, course.calibration
    for budget, pruned in zip(walk, prune_models(*given, configs), strict=True):
        report = report_of(
            course.model,
            course.groups,
            pruned,
            course.scores,
            budget.config,
            calibration=course.calibration,
            base=course.base,
        )
        by_main(lambda budget=budget, pruned=pruned, report=report: kept.save(budget.name, pruned.model, report))


def _measure(course: Course, yardstick: Yardstick, kept: Kept, name: str) -> None:
    """Measure a model as it loads."""
    report = kept.report(name)
    found = yardstick.measure(kept.load(name), report.divergence)
    task = course.asked.task
    if task is not None:
        entry = task.entry({"dense": yardstick.dense, "pruned": found})
        kept.note_report(name, evaluations=[entry])
    kept.note(name, found)


def _time(course: Course, names: Sequence[str], kept: Kept) -> dict[str, Latency]:
    """Time all models in turn with the dense one; in parts, each with the dense one, where memory has no room for all.

    What was timed in one run before, in the same way, is not timed again.
    """
    if course.timing is None:
        return {}
    times = by_main(kept.times)
    if all(name in times and is_timed(times[name], course.timing) for name in names):
        return times

    def timed(part: Sequence[int]) -> list[Latency]:
        return times_of(course.model, [kept.load(names[place]) for place in part], course.timing)

    sizes = by_main(lambda: [kept.report(name).bytes_pruned for name in names])
    found: list[Latency] = []
    for part in progress(parts_that_fit(course.model, sizes), "timing", "run"):
        found += by_main(lambda part=part: timed(part))
    times = dict(zip(names, found, strict=True))
    by_main(lambda: kept.note_times(times))
    return times


def _sweep(
    course: Course, yardstick: Yardstick, budgets: Sequence[Budget], kept: Kept, times: Mapping[str, Latency]
) -> Sweep:
    for budget in budgets:
        if budget.name in times and budget.config.latency is None:  # else the report has what was timed for the budget
            kept.note_report(budget.name, latency=times[budget.name])
    reports = [kept.report(budget.name) for budget in budgets]
    measured = [kept.noted(budget.name) for budget in budgets]
    scale = course.asked.scale(yardstick, measured)
    whole = {group.key: torch.ones(group.units, dtype=torch.bool) for group in course.groups}
    layers = layers_of(compose(structure_of_model(course.model), structure_of(course.groups, whole)))
    return Sweep(
        dense=dense_point(reports[0], layers, metrics_of(yardstick.dense), list(times.values())),
        points=[
            point_of(report, budget.name, budget.fields, metrics_of(found), times.get(budget.name))
            for budget, report, found in zip(budgets, reports, measured, strict=True)
        ],
        metric=scale.name,
        lower=scale.lower,
        relative=scale.relative,
        task=course.asked.described(yardstick.dense),
        tokens=course.scores.tokens,
        timing=course.timing,
        config={**budgets[0].config.to_dict(), **dict.fromkeys(BUDGETS)},
    )
