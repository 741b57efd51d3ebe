"""Loops and stages that go on where a killed run stopped, if there is a work folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor
from transformers.utils import logging

from ..running.processes import first_of_all, is_main, process_index, progress, together
from .tensor_files import SavedTensors, write_tensors
from .work_folder import Place, at, here

logger = logging.get_logger(__name__)

EVERY = 60.0  # seconds between two notes of a loop, or more:
SHARE = 20  # so many times as long as it took to write the last one


class Resumable(Protocol):
    """What a loop adds to."""

    def tensors(self) -> Mapping[str, Tensor]:
        """All that it holds, by name."""

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Hold what `tensors` returned earlier; a `ValueError` if that cannot be."""


@dataclass(frozen=True)
class Outcome:
    """What a stage came to.

    Args:
        common: the same on all processes.
        own: what is this process's own; `None` if none has such.
    """

    common: Mapping[str, Tensor]
    own: Mapping[str, Tensor] | None = None


def resumed(items: Sequence, title: str, unit: str, *, name: str, sums: Resumable) -> Iterator[Any]:
    """The items that are left to do, with a progress bar; what those before have added is restored.

    When the loop asks for the next item, it has added the last one, and nothing else. Each process has its own items.

    Args:
        items: all items, the same in every run.
        title: the bar's name.
        unit: what an item is, in a word.
        name: the loop's name, in letters, digits and hyphens.
        sums: what the loop adds to.

    Raises:
        ValueError: what was kept is damaged; names the file.
    """
    place = here()
    if place is None:
        yield from progress(items, title, unit)
        return
    file = place.of(name).file(f".{process_index()}")
    done = together(lambda: _restored(file, sums, len(items), place))
    last, pause = time.monotonic(), EVERY
    left = progress(items[done:], title, unit, initial=done, total=len(items))
    for number, item in enumerate(left, start=done + 1):
        yield item
        if time.monotonic() - last >= pause or number == len(items):
            started = time.monotonic()
            _keep(file, sums, {"done": number, "of": len(items), "seconds": place.clock.seconds()})
            last = time.monotonic()
            pause = max(EVERY, SHARE * (last - started))


def once(name: str, compute: Callable[[], Outcome]) -> Outcome:
    """What a stage comes to, or came to in an earlier run; stages inside are its parts.

    Args:
        name: the stage's name, in letters, digits and hyphens.
        compute: the stage. All processes take part.

    Raises:
        ValueError: what was kept is damaged; names the file.
    """
    outer = here()
    if outer is None:
        return compute()
    place = outer.of(name)
    outcome = _known(place)
    if outcome is None:
        with at(place):
            outcome = compute()
        if not _noted(place, outcome):
            return outcome
    place.delete_parts()
    return outcome


def _restored(file: Any, sums: Resumable, count: int, place: Place) -> int:
    """Restore what a loop had added, and return how many of its items that were."""
    try:
        saved = SavedTensors(file)
    except FileNotFoundError:
        return 0
    done, of = saved.notes.get("done"), saved.notes.get("of")
    try:
        if of != count or not isinstance(done, int) or not 0 <= done <= count:
            raise ValueError(f"{done!r} of {of!r} steps, where there are {count}")
        sums.restore(saved)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{file} holds what this run does not: {error}. Delete it to do that part again.") from error
    place.clock.at_least(float(saved.notes.get("seconds", 0)))
    return done


def _keep(file: Any, sums: Resumable, notes: Mapping[str, Any]) -> None:
    """Write what a loop has added; that the disk is full does not end the run."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(file, sums.tensors(), notes)
    except OSError as error:
        logger.warning_once(f"unfinished work is not kept in {file.parent}: {error}.")


def _known(place: Place) -> Outcome | None:
    """What was noted of a stage, on all processes; `None` if a part of it is missing anywhere."""

    def common() -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        return _read(place, "") if is_main() else None

    found = first_of_all(together(common))
    if found is None:
        return None
    tensors, notes = found
    own = together(lambda: _read(place, f".own{process_index()}")) if notes["own"] else None
    if notes["own"] and first_of_all(None if own else "missing"):
        return None
    place.clock.at_least(notes["seconds"])
    return Outcome(tensors, own and own[0])


def _read(place: Place, end: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    try:
        saved = SavedTensors(place.file(end))
    except FileNotFoundError:
        return None
    return dict(saved), saved.notes


def _noted(place: Place, outcome: Outcome) -> bool:
    """Write what a stage came to, and return whether all of it is written: what is common comes last."""
    notes = {"own": outcome.own is not None, "seconds": place.clock.seconds()}

    def write(end: str, tensors: Mapping[str, Tensor] | None) -> str | None:
        try:
            if tensors is not None:
                place.path.parent.mkdir(parents=True, exist_ok=True)
                write_tensors(place.file(end), tensors, notes)
        except OSError as error:
            logger.warning_once(f"finished work is not kept in {place.path.parent}: {error}.")
            return "not written"
        return None

    for end, tensors in ((f".own{process_index()}", outcome.own), ("", outcome.common if is_main() else None)):
        if first_of_all(write(end, tensors)):
            return False
    return True
