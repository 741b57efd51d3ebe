"""Trial cuts: of several ways to spend a budget, take the one whose refitted model stays closest to the dense one.

Scores add up single removals, to second order, before the layers below are cut. What several removals do together, and
how much of it the refit takes back, shows only on a model that is cut and refitted. So each candidate is cut and
refitted on a part of the calibration data, and its outputs are compared on samples that the refit has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from transformers.utils import logging

from ..architectures.group import Groups
from ..compensation.refit import refit
from ..config import OptinConfig
from ..discovery.find import find_groups
from ..editing.surgery import rewrite
from ..merging.hooks import attach_merging, merges_tokens
from ..passes.calibration import Calibration
from ..passes.outputs import has_head
from ..passes.starts import Start
from ..running.batch import samples_in
from ..running.prepared import copy_of
from ..scoring import Scores
from .candidates import Choice, ranked, schedules, sublayers_to_go
from .divergence import measure_divergence

STRENGTH = 1e-2  # strength of every regression: choosing it would cost more than a comparison needs
_WEIGHTS = (1.0, 0.1, 10.0)  # weights of the output term, times the configured one
_TOKENS_PER_INPUT = 8  # tokens for each input of the widest consumer, in trials of schedules
_AT_ONCE = 3  # models in memory
_UNTRIED = {
    "merging": (
        "merges none: it compares trial cuts, which take search='measured', calibration data and a model with a head. "
        "Give the pairs to merge after each layer instead."
    ),
    "depth": (
        "leaves out no whole sublayer: it compares trial cuts, which take search='measured', calibration data and a "
        "model with a head. Give the number of sublayers instead."
    ),
}
_PART = 8  # trial cuts are refitted on this part of the batches
logger = logging.get_logger(__name__)


def choose(
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    config: OptinConfig,
    *,
    starts: Sequence[Start | None],
    held_out: Calibration | None,
) -> Choice:
    """Choose how to spend the budget: by the scores alone or, if trial cuts can tell, the best of several ways.

    Schedules are tried first, then whole sublayers to do without, then weights of the output term.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        config: the configuration.
        starts: starts of the trial refits (`dense_passes`); empty for no refit.
        held_out: what to compare outputs on; with `None`, nothing is tried.
    """
    found = schedules(model, groups, scores, config)
    first = sublayers_to_go(model, groups, scores, config, found[0])[0]
    choices = [ranked(model, groups, scores, config, schedule=schedule, sublayers=first) for schedule in found]
    # Without a head, no distance that we tried tells which cut serves better (docs/source/experiments.mdx).
    if config.search != "measured" or held_out is None or not has_head(model, held_out[0]):
        for name in ("merging", "depth"):
            if getattr(config, name) == "auto" and (name != "merging" or merges_tokens(model, config)):
                logger.warning(f"{name}='auto' {_UNTRIED[name]}")
        return choices[0]
    part = max(1, len(starts) // _PART)
    if len(choices) > 1 or config.depth == "auto":
        part = max(part, _batches_for_schedules(groups, scores.tokens * samples_in(held_out[0])))
    trials = Trials(model, groups, starts[:part], held_out)
    schedule = trials.best(choices).schedule
    sublayers = first
    if config.depth == "auto":
        gone = sublayers_to_go(model, groups, scores, config, schedule)
        beside = [ranked(model, groups, scores, config, schedule=schedule, sublayers=each) for each in gone]
        sublayers = trials.best(beside).sublayers
    options = {"schedule": schedule, "sublayers": sublayers}
    weights = [config.output_weight * factor for factor in _WEIGHTS]
    return trials.best([ranked(model, groups, scores, config, output_weight=each, **options) for each in weights])


def _batches_for_schedules(groups: Groups, tokens: int) -> int:
    """How many batches, of `tokens` tokens each, a fair trial of schedules takes.

    Schedules leave different numbers of units, and on few tokens, a refit of fewer units does worse than on all data.
    """
    return math.ceil(_TOKENS_PER_INPUT * max(group.units * group.width for group in groups) / tokens)


class Trials:
    """Trial cuts of one model at one budget; none is made twice.

    Args:
        dense: the model; unchanged.
        groups: its groups.
        starts: starts of the trial refits (`dense_passes`); empty for no refit.
        held_out: what to compare outputs on.
    """

    def __init__(self, dense: nn.Module, groups: Groups, starts: Sequence[Start | None], held_out: Calibration):
        self.dense = dense
        self.groups = groups
        self.starts = starts
        self.held_out = held_out
        self._tried: list[tuple[Choice, float]] = []

    def best(self, choices: Sequence[Choice]) -> Choice:
        """The choice whose refitted model diverges least; if several do, the first."""
        if all(_same_cut(choice, choices[0]) for choice in choices):
            return choices[0]
        new: list[Choice] = []
        for choice in choices:
            if not any(_same_cut(choice, other) for other in [*new, *(tried for tried, _ in self._tried)]):
                new.append(choice)
        for first in range(0, len(new), _AT_ONCE):
            part = new[first : first + _AT_ONCE]
            self._tried += zip(part, self._divergences(part), strict=True)
        distances = [self._known(choice) for choice in choices]
        logger.debug(f"divergence of trial cuts: {distances}")
        return choices[min(range(len(choices)), key=lambda index: (math.isnan(distances[index]), distances[index]))]

    def _known(self, choice: Choice) -> float:
        return next(distance for tried, distance in self._tried if _same_cut(choice, tried))

    def _divergences(self, choices: Sequence[Choice]) -> list[float]:
        models = []
        for choice in choices:
            models.append(copy_of(self.dense, apart=False))
            rewrite(models[-1], self.groups, choice.masks)
        if self.starts:
            masks = [choice.masks for choice in choices]
            refit(self.dense, models, self.groups, self.starts, STRENGTH, masks=masks, rounds=1)
        for pruned, choice in zip(models, choices, strict=True):
            if choice.schedule is not None:
                attach_merging(pruned, find_groups(pruned), choice.schedule)
        return [each.distance for each in measure_divergence(self.dense, models, self.groups, self.held_out)]


def _same_cut(one: Choice, other: Choice) -> bool:
    same_masks = all(torch.equal(mask, other.masks[key]) for key, mask in one.masks.items())
    return one.schedule == other.schedule and same_masks
