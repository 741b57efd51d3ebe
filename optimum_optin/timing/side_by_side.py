"""Side by side: wall-clock time of runs that take turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..keeping.doors import keeping
from ..running.forward import run_model
from ..running.freezing import frozen

WARM_UP = 2  # runs of each that do not count


@dataclass(frozen=True)
class LatencyComparison:
    """Median wall-clock time of one forward pass.

    Args:
        dense_seconds: median time of the first model.
        pruned_seconds: median time of the second model.
        speedup: median of the ratios of neighbouring runs, dense / pruned.
    """

    dense_seconds: float
    pruned_seconds: float
    speedup: float

    def __str__(self) -> str:
        return (
            f"{1e3 * self.dense_seconds:.1f} ms -> {1e3 * self.pruned_seconds:.1f} ms ({self.speedup:.2f}x the speed)"
        )


@keeping("dense", "pruned")
def compare_latency(
    dense: nn.Module, pruned: nn.Module, batch: Mapping[str, Tensor], repeats: int = 15
) -> LatencyComparison:
    """Time two models on one batch, in turn, so that a drifting machine slows both alike.

    Args:
        dense: first model.
        pruned: second model, on the same device.
        batch: inputs of both.
        repeats: timed runs of each, after two for warming up.
    """
    with torch.inference_mode(), frozen(dense), frozen(pruned):
        first, second = times_in_turn([lambda: run_once(dense, batch), lambda: run_once(pruned, batch)], repeats)
    ratios = [one / other for one, other in zip(first, second, strict=True)]
    return LatencyComparison(statistics.median(first), statistics.median(second), statistics.median(ratios))


def times_in_turn(runs: Sequence[Callable[[], object]], repeats: int, warm_up: int = WARM_UP) -> list[list[float]]:
    """Seconds of each of several runs, which take turns.

    Args:
        runs: what to time; each returns once its work is done.
        repeats: how many times of each count.
        warm_up: how many runs of each come before.

    Returns:
        For each run, its times in order; those of the same place are neighbours.
    """
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(-warm_up, repeats):
        for run, found in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if turn >= 0:
                found.append(time.perf_counter() - started)
    return times


def run_once(model: nn.Module, batch: Mapping[str, Tensor]) -> None:
    """Run a model, and wait until an accelerator has done it."""
    outputs = run_model(model, batch)
    next(value for value in outputs.values() if isinstance(value, Tensor)).sum().item()
