"""Turns: one thread at a time works on models, since what it turns for a while belongs to the model or to the process.

The others wait. So two threads may prune one model, or two, and get what they would get one after the other.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers.utils import logging

from .interruption import Deferral, close_left_open, interruption_in, uninterrupted
from .switches import Switches, all_switches, turn

logger = logging.get_logger(__name__)

_PATIENCE = 10.0  # seconds of waiting after which it is said for what
_STEP = 0.02


class Turn:
    """A thread's turn.

    Attributes:
        thread: whose it is.
        models: those that are kept as they are, see `doors.kept`.
        over: whether it has ended.
    """

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.models: list[nn.Module] = []
        self.over = False
        self._stood: Switches = []
        self._deferral = Deferral()

    def begin(self) -> None:
        """Wait until no other thread has its turn; from then on, Ctrl-C is kept while something is put back."""
        started, warned = time.monotonic(), False
        while _TURNS.setdefault("now", self) is not self:  # asked and taken in one step
            if not warned and time.monotonic() - started > _PATIENCE:
                warned = True
                logger.warning(
                    "another thread is pruning or measuring a model: this one waits until that is done. (Should that "
                    "thread wait for this one, neither goes on.)"
                )
            time.sleep(_STEP)
        self._stood = all_switches()
        self._deferral.begin()

    def end(self, *, interrupted: bool) -> None:
        """End the turn; after an interruption, what nobody turned back is turned back."""
        if self.over:
            return
        if interrupted:
            turn(self._stood)
        self.leave()

    def leave(self) -> None:
        """Let the next thread have its turn."""
        self._deferral.end()
        if _TURNS.get("now") is self:
            del _TURNS["now"]
        self.over = True

    def deliver(self) -> None:
        """Raise the Ctrl-C that was kept, if there was one."""
        self._deferral.deliver()


_TURNS: dict[str, Turn] = {}


@contextmanager
@uninterrupted
def my_turn() -> Iterator[Turn]:
    """This thread's turn: it waits for it, or goes on with the one that it has."""
    has = _TURNS.get("now")
    if has is not None and has.thread == threading.get_ident():
        yield has
        return
    own, interrupted = Turn(), False
    try:
        try:
            own.begin()
            own.deliver()
            yield own
        except BaseException as error:
            interruption = interruption_in(error)
            if interruption is None:
                raise
            interrupted = True
            close_left_open(error)
            if interruption is error:
                raise
            raise interruption from None  # not what failed on its way
        finally:
            own.end(interrupted=interrupted)
            own.deliver()
    finally:  # once more: the line before might be where it is interrupted
        try:
            own.end(interrupted=True)
        finally:
            own.leave()


def _forked() -> None:
    has = _TURNS.get("now")
    if has is not None and has.thread != threading.get_ident():
        _TURNS.clear()  # the thread that had its turn is not in this process


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
