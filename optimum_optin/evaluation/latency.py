"""Latency, measured: two models side by side in one run."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..figures import Latency
from ..inputs.modalities import modality_of
from ..inputs.probes import probe_batch
from ..keeping.doors import keeping
from ..models.identity import device_of, dtype_of, type_of
from ..running.forward import run_model
from ..running.freezing import frozen


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
    times: list[tuple[float, float]] = []
    with torch.inference_mode(), frozen(dense), frozen(pruned):
        for _ in range(repeats + 2):
            times.append((_seconds(dense, batch), _seconds(pruned, batch)))
    counted = times[2:]
    first, second = zip(*counted, strict=True)
    ratios = [one / other for one, other in counted]
    return LatencyComparison(statistics.median(first), statistics.median(second), statistics.median(ratios))


def latency_entry(
    dense: PreTrainedModel, pruned: PreTrainedModel, *, tokens: int, batch_size: int = 8, repeats: int = 15
) -> Latency:
    """Time two models on samples of equal length; note the hardware and the settings.

    Args:
        dense: first model.
        pruned: second model, on the same device.
        tokens: length of every sample.
        batch_size: samples per forward pass.
        repeats: timed runs of each.

    Raises:
        ValueError: a number that is no whole number of at least 1, more tokens than the models take, or models of
            different architectures.
    """
    if type_of(dense) != type_of(pruned):
        raise ValueError(
            f"the dense model is {type_of(dense)!r}, the pruned one {type_of(pruned)!r}: compare a "
            "model with what it was pruned from."
        )
    for name, value in (("tokens", tokens), ("batch_size", batch_size), ("repeats", repeats)):
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")
    most = modality_of(dense).most_tokens(dense)
    if most is not None and tokens > most:
        raise ValueError(f"tokens={tokens} must be at most {most}, what the model takes.")
    batch = {name: torch.cat([value] * batch_size) for name, value in probe_batch(dense, tokens).items()}
    times = compare_latency(dense, pruned, batch, repeats)
    return Latency(
        device=device_of(dense).type,
        hardware=hardware(device_of(dense)),
        threads=torch.get_num_threads(),
        dtype=str(dtype_of(dense)).removeprefix("torch."),
        batch_size=batch_size,
        tokens=tokens,
        repeats=repeats,
        dense_ms=1e3 * times.dense_seconds,
        pruned_ms=1e3 * times.pruned_seconds,
        speedup=times.speedup,
    )


def hardware(device: torch.device) -> str:
    """The name that the maker gave the device."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _seconds(model: nn.Module, batch: Mapping[str, Tensor]) -> float:
    started = time.perf_counter()
    outputs = run_model(model, batch)
    next(value for value in outputs.values() if isinstance(value, Tensor)).sum().item()  # waits for an accelerator
    return time.perf_counter() - started
