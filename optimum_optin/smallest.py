"""The smallest model that loses no more than it may: bisection over budgets, with a whole cut and refit for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import nn
from transformers.utils import logging

from .architectures.group import Groups
from .config import BUDGETS, OptinConfig
from .config_values import is_number
from .discovery.next_tokens import predicts_next_token
from .figures import Drop, Drops
from .passes.calibration import Calibration
from .pipeline import Pruned, prune_model, split_of
from .readiness import least_budget
from .running.processes import first_of_all
from .scoring import Scores
from .search.candidates import fixed_schedule
from .text_tasks import held_out_perplexity

logger = logging.get_logger(__name__)

Metric = str | Callable[[nn.Module], float]
"""One of `METRICS`, or a function of a model whose value is the higher the better."""

METRICS = ("agreement", "divergence", "perplexity")
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
        if not is_number(self.most) or not 0 <= self.most < math.inf:
            raise ValueError(f"max_drop={self.most!r} must be a number of at least 0, such as 0.02.")
        if not callable(self.metric) and not isinstance(self.metric, str):
            raise TypeError(f"metric must be a name or a function of a model, got {self.metric!r:.80}.")
        if isinstance(self.metric, str) and self.metric not in METRICS:
            raise ValueError(f"metric={self.metric!r} must be a function of a model, or one of {', '.join(METRICS)}.")

    @property
    def name(self) -> str:
        """The metric's name."""
        return self.metric if isinstance(self.metric, str) else getattr(self.metric, "__name__", "metric")

    def check(self, model: nn.Module, *, calibrated: bool) -> None:
        """Raise if the metric cannot be measured for a model.

        Args:
            model: the dense model.
            calibrated: whether there are calibration data.

        Raises:
            ValueError: says why.
        """
        if not calibrated and not callable(self.metric):
            raise ValueError(
                f"metric={self.metric!r} is measured on calibration data, which saved scores do not hold: pass "
                "calibration= as well, or a function of a model as metric=."
            )
        if self.metric == "perplexity" and not predicts_next_token(model):
            raise ValueError(
                f"metric='perplexity' is for models that predict the next token, and {type(model).__name__} does not: "
                "take 'agreement' or 'divergence', or give a function."
            )


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
    drop_of = _drops(model, calibration, allowed)
    schedule = fixed_schedule(model, groups, config, scores.tokens)
    low, high = least_budget(model, groups, scores.tokens, config, schedule), 1.0
    best: tuple[Pruned, OptinConfig] | None = None
    tried: list[Drop] = []
    for _ in range(TRIALS):
        changed = replace(config, flops=(low + high) / 2)
        pruned = prune_model(model, groups, scores, calibration, changed)
        drop = first_of_all(drop_of(pruned))
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


def _drops(model: nn.Module, calibration: Calibration | None, allowed: Allowance) -> Callable[[Pruned], float]:
    """What tells how much a pruned model loses."""
    metric = allowed.metric
    if callable(metric):
        dense = float(metric(model))
        if not math.isfinite(dense):
            raise ValueError(f"{allowed.name} of the dense model is {dense}: it must be a finite number.")
        return lambda pruned: dense - float(metric(pruned.model))
    if metric == "perplexity":
        _, others = split_of(len(calibration))
        held_out = calibration.part(others).batches
        before = held_out_perplexity(model, held_out)
        return lambda pruned: held_out_perplexity(pruned.model, held_out) / before - 1
    if metric == "divergence":
        return lambda pruned: pruned.divergence.distance
    return _disagreement


def _disagreement(pruned: Pruned) -> float:
    agreement = pruned.divergence.agreement
    if agreement is None:
        raise ValueError("there is no agreement of outputs without variance: take metric='divergence'.")
    return 1 - agreement
