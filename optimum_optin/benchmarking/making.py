"""Making forms: a model written, loaded from disk, run once, and compared with its eager mode."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import nn
from transformers.utils import logging

from ..keeping.interruption import raise_interruption
from ..models.identity import device_of, is_of_transformers
from ..running.batch import Batch
from ..timing.peaks import PeakMeter
from .agreement import agreement_of
from .batches import Work
from .cells import EAGER, Form
from .decoding import decoding_times
from .runners import Runner, size_of
from .variants import RUN, WRITTEN, Variant

_LOADS, _LONG = 3, 2.0  # times that a form is loaded, if that takes no longer than so many seconds
_SAID = 200  # characters of an error

Peaks = Mapping[tuple[str, int, float], "int | None"]
"""Kind, batch size and tokens of some work -> the most bytes that a form holds while it does it."""


@dataclass(frozen=True)
class Made:
    """A form of a model, ready to be timed.

    Args:
        variant: which.
        form: what is said of it.
        runner: what runs it; `None` if that failed.
        peaks: memory that it takes.
    """

    variant: Variant
    form: Form
    runner: Runner | None
    peaks: Peaks = field(default_factory=dict)

    @torch.inference_mode()
    def compared(self, reference: Runner, batches: Sequence[Batch], checked_on: str) -> Made:
        """The same with what is said of its outputs, beside those of the same model in eager mode.

        Args:
            reference: the model in eager mode.
            batches: what to compare them on.
            checked_on: what these are.
        """
        if self.runner is None:
            return self
        try:
            found = agreement_of(reference.outputs, self.runner.outputs, batches, self.variant.tolerance)
        except Exception as error:  # whatever a graph ends in that does not take a batch
            raise_interruption(error)
            return replace(self, form=replace(self.form, failed=_said(error)), runner=None)
        said = {"distance": found.distance, "agreement": found.agreement, "wrong": found.wrong}
        return replace(self, form=replace(self.form, checked_on=checked_on, **said))


@dataclass(frozen=True)
class Job:
    """What forms are made for.

    Args:
        works: what will be timed.
        prompts: what forms will write after that can write.
        new: how many tokens.
        sample: a batch to export with.
        threads: threads that a model may use.
    """

    works: Sequence[Work]
    prompts: Sequence[Work]
    new: int
    sample: Batch
    threads: int


def make(variant: Variant, which: str, model: nn.Module, folder: Path, job: Job) -> Made:
    """Make a form of a model and run all that is to be timed once; if that fails, what is made says why.

    Args:
        variant: which form.
        which: `"dense"` or `"pruned"`.
        model: the model.
        folder: an empty folder to write it to.
        job: what it is made for.

    Raises:
        Exception: eager mode failed, with which all others are compared.
    """
    form = Form(model=which, variant=variant.name)
    try:
        with _quiet():
            return _made(variant, form, model, folder, job)
    except Exception as error:  # exporters and compilers fail in many ways, and the other forms are worth measuring
        raise_interruption(error)
        if variant.name == EAGER:
            raise
        return Made(variant, replace(form, failed=_said(error)), None)


def _made(variant: Variant, form: Form, model: nn.Module, folder: Path, job: Job) -> Made:
    started = time.perf_counter()
    load = variant.write(model, folder, job.sample, job.threads)
    made = {WRITTEN: time.perf_counter() - started}
    meter = PeakMeter(device_of(model))
    seconds, runner = _timed_load(load)
    with torch.inference_mode():
        started = time.perf_counter()
        for work in job.works:
            runner.run(runner.feed(work.batches[0]))
        made[RUN] = time.perf_counter() - started
        peaks = {_key(work): meter.peak(lambda work=work: _run_all(runner, work)) for work in job.works}
        for work in job.prompts if variant.generates else ():
            (prompt,) = work.batches
            peaks[_key(work)] = meter.peak(lambda prompt=prompt: decoding_times(runner.model, prompt, job.new))
    loads = [seconds]
    while len(loads) < _LOADS and sum(loads) < _LONG:
        loads.append(_timed_load(load)[0])
    of_disk = is_of_transformers(model) or variant.made == WRITTEN
    form = replace(
        form,
        bytes_on_disk=size_of(folder),
        prepare_seconds=made.get(variant.made),
        load_seconds=statistics.median(loads) if of_disk else None,
    )
    return Made(variant, form, runner, peaks)


@contextmanager
def _quiet() -> Iterator[None]:
    """No bars of transformers for every model that is saved and loaded."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _timed_load(load: Callable[[], Runner]) -> tuple[float, Runner]:
    started = time.perf_counter()
    runner = load()
    return time.perf_counter() - started, runner


def _run_all(runner: Runner, work: Work) -> None:
    for batch in work.batches:
        runner.run(runner.feed(batch))


def _key(work: Work) -> tuple[str, int, float]:
    return work.kind, work.batch_size, work.tokens


def _said(error: Exception) -> str:
    """An error in a line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"[:_SAID]
