"""Doors: whatever takes a user's model in hand gives it back as it was, whether it ends, fails or is interrupted.

Contexts inside undo what they did, as ever. But Ctrl-C may come between a hook and the line that notes how to remove
it, or between a context and its `with`; so whatever they left is undone here, from a snapshot.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import nn

from .guards import guard
from .interruption import close_left_open, interruption_in, uninterrupted
from .offloaded import take_in
from .snapshot import Snapshot
from .turns import Turn, my_turn

Function = TypeVar("Function", bound=Callable)


@contextmanager
@uninterrupted
def kept(*models: nn.Module) -> Iterator[None]:
    """Keep models as they are: hooks, modes, attributes, tensors and configs are the same on exit, on Ctrl-C, too.

    Inside, weights that were offloaded to files are there, as pages of these (`offloaded.py`).
    One thread at a time is inside; another one waits, and its forward passes of these very models are refused.
    """
    with my_turn() as turn:
        if not models:
            yield
        elif any(each is models[0] for each in turn.models):  # kept, or frozen
            with kept(*models[1:]):
                yield
        else:
            with put_back(models[0], turn, whole=True), kept(*models[1:]):
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
    # What is inside another context of the same model leaves to that one what only an interruption leaves behind.
    deep, count = not any(each is model for each in turn.models), len(turn.models)
    before = Snapshot(model, values=whole, deep=deep)
    try:
        try:
            guard(model)
            turn.models.append(model)
            if whole:  # or modules and tensors would not come back to their places
                take_in(model)
            turn.deliver()
            yield
        except BaseException as error:
            if interruption_in(error) is not None:
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


@contextmanager
@uninterrupted
def all_or_nothing(model: nn.Module) -> Iterator[None]:
    """Change a model in place, wholly or, if that fails or is interrupted, not at all."""
    with my_turn() as turn:
        before, done = Snapshot(model), False
        try:
            try:
                yield
                done = True
            finally:
                if not done and not turn.over:
                    before.restore(whole=True)
        finally:  # once more: the line before might be where it is interrupted
            if not done and not turn.over:
                before.restore(whole=True)
        turn.deliver()


def keeping(*names: str) -> Callable[[Function], Function]:
    """Let a function keep models as they are.

    Args:
        names: of its arguments that are models; `"self"` for one whose attribute `model` is.
    """

    def around(function: Function) -> Function:
        parameters = inspect.signature(function)

        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            given = parameters.bind_partial(*args, **kwargs).arguments
            found = [given[name].model if name == "self" else given.get(name) for name in names]
            with kept(*(each for each in found if isinstance(each, nn.Module))):  # others are refused inside
                return function(*args, **kwargs)

        return inside

    return around
