"""Yardsticks: in which metric models are compared, how a model is measured in it, and what one has lost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from ..config_values import is_number
from ..discovery.next_tokens import predicts_next_token
from ..figures import Divergence, Measurement
from ..passes.calibration import Calibration
from ..pipeline import split_of
from ..text_tasks import held_out_perplexity

Metric = str | Callable[[nn.Module], float]
"""One of `METRICS`, or a function of a model whose value is the higher the better."""

METRICS = ("agreement", "divergence", "perplexity")
_LOWER = ("divergence", "perplexity", "wer", "cer")  # the better
_RELATIVE = ("perplexity",)


@dataclass(frozen=True)
class Scale:
    """How to read the values of a metric.

    Args:
        name: the metric's name.
        lower: whether a model is the better, the lower its value.
        relative: whether a loss is a share of the dense model's value, rather than a difference.
    """

    name: str
    lower: bool = False
    relative: bool = False

    def drop(self, dense: float, value: float) -> float:
        """What a model has lost.

        Args:
            dense: the dense model's value.
            value: its own.
        """
        lost = value - dense if self.lower else dense - value
        return lost / abs(dense) if self.relative else lost


def scale_named(name: str) -> Scale:
    """The scale of a metric that has a name with us."""
    return Scale(name, name in _LOWER, name in _RELATIVE)


@dataclass(frozen=True)
class Yardstick:
    """What measures models.

    Args:
        scale: of the metric that counts.
        dense: what the dense model has.
        measure: what a pruned model has, by the model and the divergence of its outputs, which is known already.
    """

    scale: Scale
    dense: Measurement
    measure: Callable[[nn.Module, Divergence | None], Measurement]

    def drop(self, found: Measurement) -> float:
        """What a pruned model has lost."""
        return self.scale.drop(value_of(self.dense, self.scale.name), value_of(found, self.scale.name))


def value_of(found: Measurement, metric: str) -> float:
    """A metric's value, without its standard error."""
    return found.metrics[metric][0]


def check_drop(most: object) -> None:
    """Raise if it is nothing that a model may lose.

    Raises:
        ValueError: it is no number of at least 0.
    """
    if not is_number(most) or not 0 <= most < math.inf:
        raise ValueError(f"max_drop={most!r} must be a number of at least 0, such as 0.02.")


def check_metric(metric: object) -> None:
    """Raise if it is no metric.

    Raises:
        ValueError: no such metric.
        TypeError: it is neither a name nor a function.
    """
    if not callable(metric) and not isinstance(metric, str):
        raise TypeError(f"metric must be a name or a function of a model, got {metric!r:.80}.")
    if isinstance(metric, str) and metric not in METRICS:
        raise ValueError(f"metric={metric!r} must be a function of a model, or one of {', '.join(METRICS)}.")


def check_measurable(metric: Metric, model: nn.Module, *, calibrated: bool, argument: str = "metric") -> None:
    """Raise if a metric cannot be measured for a model.

    Args:
        metric: the metric.
        model: the dense model.
        calibrated: whether there are calibration data.
        argument: what the metric was given as.

    Raises:
        ValueError: says why.
    """
    if not calibrated and not callable(metric):
        raise ValueError(
            f"{argument}={metric!r} is measured on calibration data, which saved scores do not hold: pass "
            f"calibration= as well, or a function of a model as {argument}=."
        )
    if metric == "perplexity" and not predicts_next_token(model):
        raise ValueError(
            f"{argument}='perplexity' is for models that predict the next token, and {type(model).__name__} does not: "
            "take 'agreement' or 'divergence', or give a function."
        )


def name_of_metric(metric: Metric) -> str:
    """A metric's name: a function's is its own."""
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def yardstick_of(
    model: nn.Module, calibration: Calibration | None, metric: Metric, known: Measurement | None = None
) -> Yardstick:
    """What measures in a metric.

    Args:
        model: the dense model.
        calibration: its calibration; may be `None` if the metric is a function.
        metric: see `Metric`.
        known: what the dense model has in it; `None` measures that.

    Raises:
        ValueError: a function gives no finite number for the dense model.
    """
    if callable(metric):
        return _by_function(model, metric, known)
    if metric == "perplexity":
        _, others = split_of(len(calibration))
        held_out = calibration.part(others).batches
        dense = held_out_perplexity(model, held_out) if known is None else value_of(known, metric)
        return _yardstick(scale_named(metric), dense, lambda pruned, _: held_out_perplexity(pruned, held_out))
    if metric == "divergence":
        return _yardstick(scale_named(metric), 0.0, lambda _, divergence: divergence.distance)
    return _yardstick(scale_named(metric), 1.0, _agreement)


def _by_function(model: nn.Module, metric: Callable[[nn.Module], float], known: Measurement | None) -> Yardstick:
    scale = Scale(name_of_metric(metric))
    dense = float(metric(model)) if known is None else value_of(known, scale.name)
    if not math.isfinite(dense):
        raise ValueError(f"{scale.name} of the dense model is {dense}: it must be a finite number.")
    return _yardstick(scale, dense, lambda pruned, _: float(metric(pruned)))


def _yardstick(scale: Scale, dense: float, value: Callable[[nn.Module, Divergence | None], float]) -> Yardstick:
    def measured(found: float) -> Measurement:
        return Measurement({scale.name: (found, None)})

    return Yardstick(scale, measured(dense), lambda model, divergence: measured(value(model, divergence)))


def _agreement(_: nn.Module, divergence: Divergence) -> float:
    if divergence.agreement is None:
        raise ValueError("there is no agreement of outputs without variance: take metric='divergence'.")
    return divergence.agreement
