"""What was asked to be measured: nothing in particular, a metric, a function, or a task with its data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..evaluation.comparison import OpenTask, open_task
from ..figures import Divergence, Measurement
from ..passes.calibration import Calibration
from .yardsticks import METRICS, Metric, Scale, Yardstick, check_measurable, scale_named, yardstick_of

Evaluate = str | Mapping[str, Any] | Callable[[nn.Module], float] | None
"""`None` for what reports hold of held-out samples, a metric as of `max_drop`, a function of a model, a task's name, or
`{"task": name, ...}` with its options as of `OptinPruner.evaluate`, and `"metric"` for one that is not its first."""


@dataclass(frozen=True)
class Asked:
    """What was asked to be measured.

    Args:
        metric: a name or a function, see `Metric`; `None` if it is a task.
        task: the task; `None` if it is a metric.
        counts: which of the task's metrics counts; `None` for the first.
        either: whether divergence may stand for an agreement that there is not.
        identity: what tells it from others, as words and numbers.
    """

    metric: Metric | None = None
    task: OpenTask | None = None
    counts: str | None = None
    either: bool = False
    identity: Mapping[str, Any] = field(default_factory=dict)

    def check(self, model: nn.Module, *, calibrated: bool) -> None:
        """Raise if that cannot be measured; no model is run.

        Args:
            model: the dense model.
            calibrated: whether there are calibration data.

        Raises:
            ValueError: says why.
        """
        if self.task is not None:
            self.task.check(model)
        else:
            check_measurable(self.metric, model, calibrated=calibrated, argument="evaluate")

    def yardstick(self, model: nn.Module, calibration: Calibration | None, known: Measurement | None) -> Yardstick:
        """What measures it.

        Args:
            model: the dense model.
            calibration: its calibration; may be `None` for a task or a function.
            known: what the dense model has; `None` measures that.

        Raises:
            ValueError: the task has no such metric, or a function gives no finite number for the dense model.
        """
        if self.either:
            dense = Measurement({"agreement": (1.0, None), "divergence": (0.0, None)})
            return Yardstick(scale_named("agreement"), dense, _compared)
        if self.task is None:
            return yardstick_of(model, calibration, self.metric, known)
        dense = self.task.measure(model) if known is None else known
        counts = self.counts or next(iter(dense.metrics))
        if counts not in dense.metrics:
            raise ValueError(f"metric={counts!r:.80} must be one of the task's: {', '.join(dense.metrics)}.")
        return Yardstick(scale_named(counts), dense, lambda pruned, _: self.task.measure(pruned))

    def scale(self, yardstick: Yardstick, found: Sequence[Measurement]) -> Scale:
        """The scale of the metric that counts, now that all models were measured."""
        lacking = any(yardstick.scale.name not in each.metrics for each in found)
        return scale_named("divergence") if self.either and lacking else yardstick.scale

    def described(self, dense: Measurement) -> dict[str, Any]:
        """What was measured on: fields of an `Evaluation`; empty if it is no task."""
        return {} if self.task is None else {**self.task.described(), **dense.described}


def asked_of(evaluate: Evaluate, processor: Any) -> Asked:
    """What `evaluate=` asks for, with its data.

    Args:
        evaluate: see `Evaluate`.
        processor: the model's tokenizer or image processor.

    Raises:
        TypeError: it is none of these.
        ValueError, FileNotFoundError, ConnectionError, ImportError: see
            `optimum_optin.evaluation.comparison.evaluate_model`.
    """
    if evaluate is None:
        return Asked("agreement", either=True, identity={"evaluate": None})
    if callable(evaluate):
        where = (
            f"{getattr(evaluate, '__module__', '')}.{getattr(evaluate, '__qualname__', type(evaluate).__qualname__)}"
        )
        return Asked(evaluate, identity={"evaluate": where})
    if isinstance(evaluate, str) and evaluate in METRICS:
        return Asked(evaluate, identity={"evaluate": evaluate})
    if isinstance(evaluate, str):
        evaluate = {"task": evaluate}
    if not isinstance(evaluate, Mapping):
        raise TypeError(
            "evaluate must be a task's name, a dict such as {'task': 'glue/sst2', 'data_dir': 'GLUE'}, one of "
            f"{', '.join(METRICS)}, or a function of a model, got {evaluate!r:.80}."
        )
    options = dict(evaluate)
    if not isinstance(options.get("task"), str):
        raise ValueError(f"evaluate={evaluate!r:.80} must name its task: {{'task': 'glue/sst2', ...}}.")
    counts = options.pop("metric", None)
    identity = {f"evaluate {name}": _identity(value) for name, value in options.items() if name != "batch_size"}
    return Asked(task=open_task(processor, **options), counts=counts, identity=identity)


def _compared(_: nn.Module, divergence: Divergence | None) -> Measurement:
    agreement = {} if divergence.agreement is None else {"agreement": (divergence.agreement, None)}
    return Measurement({**agreement, "divergence": (divergence.distance, None)})


def _identity(value: Any) -> str | int | float | None:
    """What tells an option from others: its value, or a digest of its data."""
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(found := getattr(value, "_fingerprint", None), str):  # of a `datasets.Dataset`
        return found
    return hashlib.sha256(repr(value).encode()).hexdigest()
