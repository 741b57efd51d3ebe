"""Turns: all forms of both models run one after the other, until the ratios of their times are known."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch

from ..timing.side_by_side import WARM_UP, times_in_turn
from ..timing.speedups import Speedup, quantile, speedup_of
from .batches import Work
from .cells import DECODE, DENSE, EAGER, PREFILL, PRUNED, Cell, Form
from .decoding import decoding_times
from .runners import Runner

_ROUNDS = 3  # of turns at most, where ratios are noisy

Key = tuple[str, str]
"""Variant and model."""


class Entry(Protocol):
    """What takes turns (`making.Made`)."""

    form: Form
    runner: Runner | None
    peaks: Mapping[tuple[str, int, float], int | None]


@torch.inference_mode()
def timed_cells(entries: Sequence[Entry], work: Work, repeats: int) -> list[Cell]:
    """Time forms on some work, in turn: neighbours are the dense and the pruned model of a variant, and who comes first
    changes from turn to turn.

    Args:
        entries: the forms.
        work: the batches, which are run one after the other; on each, all forms take their turns.
        repeats: turns at least.
    """
    feeds = [[entry.runner.feed(batch) for batch in work.batches] for entry in entries]

    def turn(order: Sequence[int]) -> dict[int, float]:
        spent = dict.fromkeys(order, 0.0)
        for place in range(len(work.batches)):
            runs = [lambda at=at, place=place: entries[at].runner.run(feeds[at][place]) for at in order]
            for at, (seconds,) in zip(order, times_in_turn(runs, 1, warm_up=0), strict=True):
                spent[at] += seconds
        return spent

    times = _in_turn(entries, turn, repeats)
    return [
        _cell(work, work.kind, entry, times, of_run=times[_key(entry)], tokens=work.tokens * work.samples)
        for entry in entries
    ]


@torch.inference_mode()
def decoded_cells(entries: Sequence[Entry], work: Work, repeats: int, new: int) -> list[Cell]:
    """Time how forms read prompts and how they write after them, in turn.

    Args:
        entries: the forms, which can write.
        work: the prompts, one batch.
        repeats: turns at least.
        new: tokens to write.
    """
    (prompts,) = work.batches
    steps: dict[Key, list[float]] = {_key(entry): [] for entry in entries}
    reading: dict[Key, list[float]] = {_key(entry): [] for entry in entries}

    def turn(order: Sequence[int]) -> dict[int, float]:
        spent = {}
        for at in order:
            first, *rest = decoding_times(entries[at].runner.model, prompts, new)
            reading[_key(entries[at])].append(first)
            steps[_key(entries[at])] += rest
            spent[at] = sum(rest)
        return spent

    writing = _in_turn(entries, turn, repeats)
    runs = len(next(iter(writing.values())))
    reading = {key: times[-runs:] for key, times in reading.items()}  # without those for warming up
    cells = []
    for entry in entries:
        of_token = steps[_key(entry)][-runs * (new - 1) :]
        read, written = work.tokens * work.samples, (new - 1) * work.samples
        cells.append(_cell(work, PREFILL, entry, reading, of_run=reading[_key(entry)], tokens=read))
        cells.append(_cell(work, DECODE, entry, writing, of_run=of_token, tokens=written, new=new))
    return cells


def _in_turn(
    entries: Sequence[Entry], turn: Callable[[Sequence[int]], Mapping[int, float]], repeats: int
) -> dict[Key, list[float]]:
    """Seconds of each form in each turn, the same number of all; more turns where a ratio is noisy."""
    times: dict[Key, list[float]] = {_key(entry): [] for entry in entries}
    places = list(range(len(entries)))
    for number in range(-WARM_UP, _ROUNDS * repeats):
        if number > 0 and number % repeats == 0 and not any(_noise(key, times) for key in times):
            break
        for at, seconds in turn(places if number % 2 else places[::-1]).items():
            if number >= 0:
                times[_key(entries[at])].append(seconds)
    return times


def _speedups(key: Key, times: Mapping[Key, Sequence[float]]) -> tuple[Speedup | None, Speedup | None]:
    """How many times as fast a form is as the dense model in the same variant, and as that in eager mode."""
    variant, model = key
    of_variant = times.get((variant, DENSE)) if model == PRUNED else None
    of_eager = times.get((EAGER, DENSE)) if key != (EAGER, DENSE) else None
    return tuple(None if base is None else speedup_of(base, times[key]) for base in (of_variant, of_eager))


def _noise(key: Key, times: Mapping[Key, Sequence[float]]) -> str | None:
    """Why the first of a form's speedups that there is says nothing."""
    first = next((each for each in _speedups(key, times) if each is not None), None)
    return None if first is None else first.noise


def _cell(
    work: Work,
    kind: str,
    entry: Entry,
    times: Mapping[Key, Sequence[float]],
    *,
    of_run: Sequence[float],
    tokens: float,
    new: int | None = None,
) -> Cell:
    """A cell of the table.

    Args:
        work: what was run.
        kind: the cell's `work`.
        entry: the form.
        times: seconds of all forms in each turn.
        of_run: seconds that the percentiles are of.
        tokens: tokens of a turn.
        new: tokens that are written.
    """
    key = _key(entry)
    speedup, over_eager = _speedups(key, times)
    median = statistics.median(times[key])
    return Cell(
        work=kind,
        model=entry.form.model,
        variant=entry.form.variant,
        batch_size=work.batch_size,
        tokens=work.tokens,
        samples=work.samples,
        padding=work.padding,
        runs=len(times[key]),
        p50_ms=1e3 * statistics.median(of_run),
        p95_ms=1e3 * quantile(of_run, 0.95),
        samples_per_second=work.samples / median,
        tokens_per_second=tokens / median,
        peak_bytes=entry.peaks.get((work.kind, work.batch_size, work.tokens)),
        new_tokens=new,
        speedup=speedup,
        speedup_over_eager=over_eager,
        noise=_noise(key, times),
    )


def _key(entry: Entry) -> Key:
    return entry.form.variant, entry.form.model
