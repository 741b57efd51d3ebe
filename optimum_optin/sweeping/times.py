"""Times of a sweep: the dense model and all pruned ones, which take turns in one run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import nn

from ..config_values import check_integer
from ..evaluation.latency import check_numbers, check_pair
from ..figures import Latency
from ..inputs.probes import samples_of
from ..running.freezing import frozen
from ..timing.machine import setting_of
from ..timing.side_by_side import run_once, times_in_turn
from .points import Timing


def check_timing(model: nn.Module, batch_size: int, tokens: int | None, repeats: int) -> None:
    """Raise if models cannot be timed so.

    Raises:
        ValueError: a number that is none, or more tokens than the model takes.
    """
    check_numbers(batch_size=batch_size)
    check_integer("repeats", repeats, 0)
    if tokens is not None:
        check_numbers(tokens=tokens)
        check_pair(model, model, tokens)


def timing_of(model: nn.Module, batch_size: int, tokens: int, repeats: int) -> Timing:
    """How a model is timed here."""
    return Timing(**setting_of(model), batch_size=batch_size, tokens=tokens, repeats=repeats)


def is_timed(latency: Latency, timing: Timing) -> bool:
    """Whether something was timed in this way."""
    return all(getattr(latency, name) == value for name, value in vars(timing).items())


def times_of(dense: nn.Module, pruned: Sequence[nn.Module], timing: Timing) -> list[Latency]:
    """Time models in turn with the dense one, on samples of equal length.

    Args:
        dense: the dense model.
        pruned: the models, on the same device; all are in memory.
        timing: the batch, and how often.
    """
    batch = samples_of(dense, timing.tokens, timing.batch_size)
    with torch.inference_mode(), ExitStack() as stack:
        for model in (dense, *pruned):
            stack.enter_context(frozen(model))
        runs = [lambda model=model: run_once(model, batch) for model in (dense, *pruned)]
        # Nothing comes between the runs, not even a progress bar: what it would slow is always the same model.
        first, *others = times_in_turn(runs, timing.repeats)
    return [
        Latency(
            **vars(timing),
            dense_ms=1e3 * statistics.median(first),
            pruned_ms=1e3 * statistics.median(seconds),
            speedup=statistics.median(one / other for one, other in zip(first, seconds, strict=True)),
        )
        for seconds in others
    ]
