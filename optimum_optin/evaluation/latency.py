"""Latency, measured: two models side by side in one run."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from ..config import OptinConfig
from ..figures import Latency
from ..inputs.modalities import modality_of
from ..inputs.probes import samples_of
from ..models.identity import type_of
from ..timing.machine import setting_of
from ..timing.ratios import Ratio
from ..timing.side_by_side import compare_latency


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
    check_numbers(tokens=tokens, batch_size=batch_size, repeats=repeats)
    check_pair(dense, pruned, tokens)
    batch = samples_of(dense, tokens, batch_size)
    times = compare_latency(dense, pruned, batch, repeats)
    return Latency(
        **setting_of(dense),
        batch_size=batch_size,
        tokens=tokens,
        repeats=repeats,
        dense_ms=1e3 * times.dense_seconds,
        pruned_ms=1e3 * times.pruned_seconds,
        speedup=times.speedup,
    )


def budgeted_latency(model: nn.Module, timed: Ratio, tokens: int, config: OptinConfig) -> Latency:
    """What the search for a budget of latency timed at its end, as the report's entry.

    Args:
        model: the dense model.
        timed: the cut model's time as a part of the dense one's.
        tokens: the calibration data's mean length.
        config: the configuration, which says on what it was timed.
    """
    return Latency(
        **setting_of(model),
        batch_size=config.latency_batch_size,
        tokens=config.latency_length or tokens,
        repeats=timed.turns,
        dense_ms=1e3 * timed.base_seconds,
        pruned_ms=1e3 * timed.seconds,
        speedup=1 / timed.value,
        backend=config.latency_backend,
    )


def check_numbers(**numbers: int) -> None:
    """Raise if one of these is no whole number of at least 1.

    Raises:
        ValueError: names it.
    """
    for name, value in numbers.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name}={value!r} must be a whole number of at least 1.")


def check_pair(dense: nn.Module, pruned: nn.Module, tokens: int) -> None:
    """Raise if two models are not to be compared on samples of this length.

    Raises:
        ValueError: models of different architectures, or more tokens than they take.
    """
    if type_of(dense) != type_of(pruned):
        raise ValueError(
            f"the dense model is {type_of(dense)!r}, the pruned one {type_of(pruned)!r}: compare a "
            "model with what it was pruned from."
        )
    most = modality_of(dense).most_tokens(dense)
    if most is not None and tokens > most:
        raise ValueError(f"tokens={tokens} must be at most {most}, what the model takes.")
