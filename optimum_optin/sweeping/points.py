"""Points of a sweep: the dense model and the pruned ones, each with what it is and what it does."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ..figures import Divergence, Latency, plain
from ..quantities import Quantity
from ..report import Layers, PruningReport

DENSE = "dense"


@dataclass(frozen=True)
class Timing:
    """How the models of a sweep were timed.

    Args:
        device: `"cpu"`, `"cuda"`, ...
        hardware: the device's name, as its maker gives it.
        threads: how many threads PyTorch uses.
        dtype: type of the weights, e.g. `"float32"`.
        batch_size: samples per pass.
        tokens: length of every sample.
        repeats: timed runs of each model; all took turns.
    """

    device: str
    hardware: str
    threads: int
    dtype: str
    batch_size: int
    tokens: int
    repeats: int

    def __str__(self) -> str:
        return (
            f"{self.batch_size} x {self.tokens} tokens, {self.hardware}, {self.threads} threads, {self.dtype}, median "
            f"of {self.repeats} runs in turn"
        )


@dataclass(frozen=True)
class SweepPoint:
    """A model of a sweep: what it was to be, what it is, and what it does.

    Args:
        name: of the budget, such as `"flops-0.5"`; `"dense"` for the dense model.
        budget: the budget as fields of `OptinConfig`; empty for the dense model.
        metrics: metric -> `{"value": ..., "error": ...}`, with its standard error over samples, if that is known.
        flops: share that is left of the MACs of what can be pruned, as in `PruningReport.flops_achieved`.
        macs: MACs of the whole model, for one sample of the calibration data's mean length.
        params: its parameters.
        bytes: bytes of the tensors that it is saved with.
        layers: what each layer keeps.
        merges: layer -> pairs of tokens merged after it.
        milliseconds: median time of a forward pass, see `Sweep.timing`; `None` if it was not timed.
        speedup: median of the ratios of neighbouring runs, dense / this one.
        divergence: divergence of its outputs from the dense model's; `None` without calibration data.
        folder: where it was saved; `None` if it was not.
    """

    name: str
    budget: dict[str, Quantity]
    metrics: dict[str, dict[str, float | None]]
    flops: float
    macs: int
    params: int
    bytes: int
    layers: Layers
    merges: dict[str, int] = field(default_factory=dict)
    milliseconds: float | None = None
    speedup: float | None = None
    divergence: Divergence | None = None
    folder: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "divergence", Divergence.of(self.divergence))

    def to_dict(self) -> dict:
        """All fields, as a dict that `json` can write."""
        return plain(vars(self))


def point_of(
    report: PruningReport,
    name: str,
    budget: Mapping[str, Quantity],
    metrics: Mapping[str, Mapping[str, float | None]],
    latency: Latency | None,
) -> SweepPoint:
    """The point of a pruned model, by its report.

    Args:
        report: the report.
        name: of the budget.
        budget: the budget.
        metrics: what was measured.
        latency: its time beside the dense model's, if it was timed.
    """
    return SweepPoint(
        name=name,
        budget=dict(budget),
        metrics=plain(metrics),
        flops=report.flops_achieved,
        macs=report.macs_pruned,
        params=report.params_pruned,
        bytes=report.bytes_pruned,
        layers=report.layers,
        merges=report.merges,
        milliseconds=latency and latency.pruned_ms,
        speedup=latency and latency.speedup,
        divergence=report.divergence,
    )


def dense_point(
    report: PruningReport,
    layers: Layers,
    metrics: Mapping[str, Mapping[str, float | None]],
    times: Sequence[Latency],
) -> SweepPoint:
    """The point of the dense model.

    Args:
        report: that of anything that was made from it.
        layers: what each of its layers has.
        metrics: what was measured.
        times: those of all that were timed beside it.
    """
    return SweepPoint(
        name=DENSE,
        budget={},
        metrics=plain(metrics),
        flops=1.0,
        macs=report.macs_dense,
        params=report.params_dense,
        bytes=report.bytes_dense,
        layers=layers,
        milliseconds=statistics.median(each.dense_ms for each in times) if times else None,
        speedup=1.0 if times else None,
    )
