"""Measured speed: two models side by side in one run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .masking import frozen


@dataclass(frozen=True)
class LatencyComparison:
    """Median wall-clock time of one forward pass.

    Args:
        dense_seconds: of the first model.
        pruned_seconds: of the second model.
        speedup: median of the ratios of neighbouring runs, dense / pruned.
    """

    dense_seconds: float
    pruned_seconds: float
    speedup: float

    def __str__(self) -> str:
        return f"{1e3 * self.dense_seconds:.1f} ms -> {1e3 * self.pruned_seconds:.1f} ms ({self.speedup:.2f}x faster)"


def compare_latency(
    dense: nn.Module, pruned: nn.Module, batch: Mapping[str, Tensor], repeats: int = 15
) -> LatencyComparison:
    """Time two models on one batch, in turn, so that a drifting machine slows both alike.

    Args:
        dense: first model.
        pruned: second model, on the same device.
        batch: inputs of both.
        repeats: counted runs of each, after two that are not.
    """
    times: list[tuple[float, float]] = []
    with torch.inference_mode(), frozen(dense), frozen(pruned):
        for _ in range(repeats + 2):
            times.append((_seconds(dense, batch), _seconds(pruned, batch)))
    counted = times[2:]
    first, second = zip(*counted, strict=True)
    ratios = [one / other for one, other in counted]
    return LatencyComparison(statistics.median(first), statistics.median(second), statistics.median(ratios))


def _seconds(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    started = time.perf_counter()
    outputs = model(**batch)
    outputs[0].sum().item()  # waits for an accelerator
    return time.perf_counter() - started
