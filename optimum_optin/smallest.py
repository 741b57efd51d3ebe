"""The smallest model that loses no more than it may: bisection over budgets, with a whole cut and refit for each."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from torch import nn
from transformers.utils import logging

from .architectures.group import Groups
from .config import BUDGETS, OptinConfig
from .figures import Drop, Drops
from .passes.calibration import Calibration
from .pipeline import Pruned, prune_model
from .readiness import least_budget
from .running.processes import first_of_all
from .scoring import Scores
from .search.candidates import fixed_schedule
from .sweeping.yardsticks import Metric, check_drop, check_measurable, check_metric, name_of_metric, yardstick_of

logger = logging.get_logger(__name__)

TRIALS = 6


@dataclass(frozen=True)
class Allowance:
    """What a pruned model may lose.

    Args:
        most: the most that it may.
        metric: in which metric. `"agreement"`: one less the share of held-out outputs that agree with the dense
            model's; `"divergence"`: the distance of these outputs, see `figures.Divergence`; `"perplexity"`: by which
            share it rises on the held-out calibration samples; a function: what the dense model has more than this one.

    Raises:
        ValueError: no such metric, or no number of at least 0.
        TypeError: the metric is neither a name nor a function.
    """

    most: float
    metric: Metric = "agreement"

    def __post_init__(self) -> None:
        check_drop(self.most)
        check_metric(self.metric)

    @property
    def name(self) -> str:
        """The metric's name."""
        return name_of_metric(self.metric)

    def check(self, model: nn.Module, *, calibrated: bool) -> None:
        """Raise if the metric cannot be measured for a model.

        Args:
            model: the dense model.
            calibrated: whether there are calibration data.

        Raises:
            ValueError: says why.
        """
        check_measurable(self.metric, model, calibrated=calibrated)


def without_budget(config: OptinConfig) -> OptinConfig:
    """The configuration with a budget that keeps everything, for `prune_within` to lower."""
    return replace(config, **{**dict.fromkeys(BUDGETS), "flops": 1.0})


def prune_within(
    model: nn.Module,
    groups: Groups,
    scores: Scores,
    calibration: Calibration | None,
    config: OptinConfig,
    *,
    allowed: Allowance,
) -> tuple[Pruned, OptinConfig, Drops]:
    """The smallest model among those tried that loses no more than it may; six budgets are tried, by halving.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        calibration: its calibration; may be `None` if nothing is to be refitted and the metric is a function.
        config: the configuration, see `without_budget`.
        allowed: what may be lost.

    Returns:
        The pruned model, the configuration with its budget, and what was tried, in order.

    Raises:
        ValueError: none of the budgets loses so little; says which loses least. Or the metric is no finite number.
    """
    yardstick = yardstick_of(model, calibration, allowed.metric)
    schedule = fixed_schedule(model, groups, config, scores.tokens)
    low, high = least_budget(model, groups, scores.tokens, config, schedule), 1.0
    best: tuple[Pruned, OptinConfig] | None = None
    tried: list[Drop] = []
    for _ in range(TRIALS):
        changed = replace(config, flops=(low + high) / 2)
        pruned = prune_model(model, groups, scores, calibration, changed)
        drop = first_of_all(yardstick.drop(yardstick.measure(pruned.model, pruned.divergence)))
        if not math.isfinite(drop):
            raise ValueError(f"{allowed.name} of the model pruned to flops={changed.flops:.4g} is no finite number.")
        tried.append(Drop(changed.flops, drop))
        logger.info(f"flops={changed.flops:.4f}: {allowed.name} drops by {drop:.4g}, of {allowed.most:.4g} allowed.")
        if drop <= allowed.most:
            best, high = (pruned, changed), changed.flops
        else:
            low = changed.flops
    if best is None:
        least = min(tried, key=lambda each: each.drop)
        raise ValueError(
            f"max_drop={allowed.most:.4g} is met by no budget that was tried: {allowed.name} drops by {least.drop:.4g} "
            f"at flops={least.flops:.4f}, which loses least. Allow more, or give more calibration samples."
        )
    return *best, Drops(allowed.name, allowed.most, tried)
