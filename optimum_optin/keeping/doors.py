"""Doors: whatever takes a user's model in hand gives it back as it was, whether it ends, fails or is interrupted.

Contexts inside undo what they did, as ever. But Ctrl-C may come between a hook and the line that notes how to remove
it, or between a context and its `with`; so whatever they left is undone here, from a snapshot.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

from .guards import guard
from .interruption import close_left_open, uninterrupted
from .snapshot import Snapshot
from .turns import Turn, my_turn

Method = TypeVar("Method", bound=Callable)


@contextmanager
@uninterrupted
def kept(model: nn.Module) -> Iterator[None]:
    """Keep a model as it is: its hooks, modes, attributes, tensors and configs are the same on exit, on Ctrl-C, too.

    One thread at a time is inside; another one waits, and its forward passes of this very model are refused.
    """
    with my_turn() as turn:
        if any(each is model for each in turn.models):
            yield
            return
        with put_back(model, turn, whole=True):
            yield


@contextmanager
@uninterrupted
def put_back(model: nn.Module, turn: Turn, *, whole: bool) -> Iterator[None]:
    """Put back what a model was, on exit.

    Args:
        model: the model.
        turn: this thread's.
        whole: whether modules and tensors come back to their places, and values to buffers, too. After an interruption,
            the places do in any case.
    """
    before, count = Snapshot(model, values=whole), len(turn.models)
    try:
        try:
            guard(model)
            turn.models.append(model)
            turn.deliver()
            yield
        except BaseException as error:
            if not isinstance(error, Exception):
                whole = True
                close_left_open(error)
            raise
        finally:
            _give_back(before, turn, count, whole=whole)
    finally:  # once more: the line before might be where it is interrupted
        _give_back(before, turn, count, whole=whole)
    turn.deliver()


def _give_back(before: Snapshot, turn: Turn, count: int, *, whole: bool) -> None:
    if not turn.over:  # a context that was left open, and is closed when the model is somebody else's
        before.restore(whole=whole)
        del turn.models[count:]


def keeping(method: Method) -> Method:
    """A method of something that has a `model`, which it keeps as it is."""

    @functools.wraps(method)
    def inside(self, *args, **kwargs):
        with kept(self.model):
            return method(self, *args, **kwargs)

    return inside
