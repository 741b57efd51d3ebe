"""Ctrl-C in what must be done whole: it is kept until that is done."""

from __future__ import annotations

import contextlib
import gc
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable)

_WHOLE: set[CodeType] = set()


def uninterrupted(function: Function) -> Function:
    """Mark a function, or the generator of a context manager, that is not to be left half done while a `Deferral` runs.

    What it calls is not, either. A generator is left to itself while it has yielded.
    """
    _WHOLE.add(function.__code__)
    return function


class Deferral:
    """Handles SIGINT as it was handled before, but not in what is `uninterrupted`: there it is kept until `deliver`.

    Only the main thread gets signals; in others, this does nothing.
    """

    def __init__(self) -> None:
        self._earlier: Any = None
        self._waits = False

    def begin(self) -> None:
        """Begin to handle SIGINT, if Python code does."""
        earlier = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(earlier):
            self._earlier = earlier
            signal.signal(signal.SIGINT, self._handle)

    def end(self) -> None:
        """Leave SIGINT to whom it was left before, unless somebody else handles it by now."""
        if self._earlier is not None and signal.getsignal(signal.SIGINT) == self._handle:
            signal.signal(signal.SIGINT, self._earlier)

    def deliver(self) -> None:
        """Handle what was kept.

        Raises:
            KeyboardInterrupt: there was Ctrl-C, and nobody handles it otherwise.
        """
        if self._waits:
            self._waits = False
            self._earlier(signal.SIGINT, sys._getframe())

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if _in_whole(frame):
            self._waits = True
            return None
        return self._earlier(number, frame)


def close_left_open(error: BaseException | None) -> None:
    """Close the contexts that an interruption left open, now rather than when nobody looks at its traceback any more.

    Ctrl-C may come between a context and its `with`. Such a context is closed once nothing refers to it: what the
    frames behind the traceback hold is let go, and what only refers to itself is collected.
    """
    for each in _behind(error):
        traceback.clear_frames(each.__traceback__)
    gc.collect()


def interruption_in(error: BaseException | None) -> BaseException | None:
    """What interrupted the work, if an error is such or was raised on the way out: half a context may fail to close.

    What was interrupted inside modes of PyTorch may leave one more than there are, say.
    """
    return next((each for each in _behind(error) if not isinstance(each, Exception)), None)


def raise_interruption(error: Exception) -> None:
    """For whoever goes on after any error: what interrupted the work is raised, as it was no fault of the work.

    Raises:
        BaseException: the interruption behind the error.
    """
    interruption = interruption_in(error)
    if interruption is not None:
        raise interruption from None


def _behind(error: BaseException | None) -> Iterator[BaseException]:
    """An error, and those that were on their way when it was raised: they went through frames that it went through.

    One that a user was dealing with when all this began did not.
    """
    passed: set[FrameType] = set()
    while error is not None:
        frames = {frame for frame, _ in traceback.walk_tb(error.__traceback__)}
        if passed and not passed & frames:
            return
        passed |= frames
        yield error
        error = error.__context__


def _in_whole(frame: FrameType | None) -> bool:
    """Whether a frame, or one that waits for it, is `uninterrupted`, or about to enter or leave such a context."""
    while frame is not None:
        if frame.f_code in _WHOLE:
            return True
        if frame.f_code in _CONTEXTS:
            inside = getattr(frame.f_locals.get("self"), "gen", None)
            if getattr(inside, "gi_code", None) in _WHOLE:
                return True
        frame = frame.f_back
    return False


_CONTEXTS = {
    each.__code__
    for each in (contextlib._GeneratorContextManager.__enter__, contextlib._GeneratorContextManager.__exit__)
}
