"""Progress: how far a run is, over all its stages, for one bar that tells when it will end, and for a callback."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers.utils.logging import tqdm

from ..running.processes import is_main

Callback = Callable[[str, int, int], Any]
"""Called with a stage, how many of its steps are done, and how many there are; `False` stops the run."""

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"


class StoppedError(RuntimeError):
    """A callback stopped the run: nothing was written but to `work_dir`, and the model is as it was."""


@contextmanager
def run_of(plan: Sequence[tuple[str, float]], callback: Callback | None = None) -> Iterator[None]:
    """Show one bar for all stages inside, rather than one for each loop, and tell a callback how far they are.

    Args:
        plan: stages in order, with the time that each is expected to take, in any unit.
        callback: see `Callback`; it is called on every process, at the beginning of a loop and after each step.

    Raises:
        StoppedError: the callback returned `False`.
    """
    run = _Run(plan, callback)
    token = _RUN.set(run)
    try:
        yield
    finally:
        _RUN.reset(token)
        run.bar.close()


@contextmanager
def stage(name: str, loops: int = 1) -> Iterator[None]:
    """The next stage of that name in the plan.

    Args:
        name: its name.
        loops: how many loops it is expected to have.
    """
    run = _RUN.get()
    if run is None or not run.begin(name, loops):
        yield
        return
    yield
    run.end()


def plan_rest(plan: Sequence[tuple[str, float]]) -> None:
    """Say how a run goes on from here, where that is known only now.

    Args:
        plan: the stages to come, which take the place of all that were to come so far; see `run_of`.
    """
    run = _RUN.get()
    if run is not None:
        run.plan, run.place, run.base = plan, -1, run.at


def progress(
    items: Iterable, title: str, unit: str, *, done: int = 0, total: int | None = None, share: float | None = None
) -> Iterator[Any]:
    """Items, with a bar on the main process.

    Args:
        items: what is left to do.
        title: what is done with them.
        unit: what an item is, in a word.
        done: how many others were done before.
        total: how many there are with these; `None` counts them.
        share: part of the stage that all of them are; `None` takes the same for each loop.

    Raises:
        StoppedError: the callback of the run returned `False`. Its own exceptions are passed on.
    """
    total = done + len(items) if total is None else total
    run = _RUN.get()
    if run is None:
        yield from tqdm(items, desc=title, unit=unit, initial=done, total=total, disable=not is_main())
        return
    loop = run.loop(share)
    loop(title, done, total, skipped=True)
    for item in items:
        yield item
        done += 1
        loop(title, done, total)


def skip(share: float) -> None:
    """A part of the stage need not be done: an earlier run did."""
    run = _RUN.get()
    if run is not None:
        run.move(run.at + share * (run.high - run.low), skipped=True)


class _Run:
    """Where a run is in its plan: everything in shares of the whole."""

    def __init__(self, plan: Sequence[tuple[str, float]], callback: Callback | None):
        self.plan, self.callback = plan, callback
        self.place = -1  # in the plan
        self.loops = 1
        self.base = 0.0  # where the plan begins
        self.at = self.low = self.high = 0.0  # of the stage: where it is, begins and ends
        # The time that is left goes by the mean speed so far, as steps of different stages have different ones.
        self.bar = tqdm(total=1.0, smoothing=0, miniters=0, mininterval=0.5, bar_format=_BAR, disable=not is_main())

    def begin(self, name: str, loops: int) -> bool:
        """Begin a stage, if the plan has it."""
        later = (place for place in range(self.place + 1, len(self.plan)) if self.plan[place][0] == name)
        place = next(later, None)
        if place is None:
            return False
        times = [time for _, time in self.plan]
        parts = (sum(times[:end]) / sum(times) for end in (place, place + 1))
        self.low, self.high = (self.base + (1 - self.base) * part for part in parts)
        self.place, self.loops = place, loops
        self.move(self.low)
        self.bar.set_description_str(name)
        return True

    def end(self) -> None:
        """End the stage that runs."""
        self.move(self.high)

    def loop(self, share: float | None) -> Callable[..., None]:
        """What notes, and tells, how far a loop is."""
        first, width = self.at, (self.high - self.low) * (1 / self.loops if share is None else share)
        name = self.plan[self.place][0] if self.place >= 0 else ""

        def note(title: str, done: int, total: int, *, skipped: bool = False) -> None:
            title = title if name in title else f"{name}: {title}"
            self.bar.set_description_str(f"{title} {done}/{total}", refresh=False)
            self.move(first + width * done / max(total, 1), skipped=skipped)
            if self.callback is not None and self.callback(title, done, total) is False:
                raise StoppedError(f"the callback stopped the run in {title!r}, after {done} of {total} steps.")

        return note

    def move(self, at: float, *, skipped: bool = False) -> None:
        """Go on to a place, never back, nor out of the stage; what is skipped says nothing of the speed."""
        step = max(min(at, self.high) - self.at, 0.0)
        self.at += step
        if skipped and isinstance(
            getattr(self.bar, "initial", None), int | float
        ):  # a bar that is switched off has none
            self.bar.initial += step
        self.bar.update(step)


_RUN: ContextVar[_Run | None] = ContextVar("the run that shows its progress", default=None)
