"""Passes that pause: many forward passes held side by side in one thread, each stopped inside a hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, copy_context
from typing import Any

from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn

from ..keeping.switches import switches, turn


class HeldPass:
    """Work that stops where a hook in it calls `pause`, and goes on when it is told to.

    It runs in the caller's thread, on a stack of its own, so that a hook may stop it however deep in a forward pass.
    Whatever it raises, Ctrl-C included, reaches the caller. What a forward switches on for a while (autocast,
    gradients, kernels of attention) is put aside while it is stopped, and back for the rest of it.

    Args:
        work: runs the model; it begins with the first `go_on`.
        owner: what hooks get to know the pass by; see `running_pass`.

    Attributes:
        place: where it has stopped, as the hook says; `None` before it begins and after its end.
        result: what the work returned; `None` before its end.
    """

    def __init__(self, work: Callable[[], Any], owner: Any = None):
        self.owner = owner
        self.place: Any = None
        self.result: Any = None
        self._stack = greenlet(self._run)
        self._stack.gr_context = copy_context()
        self._work: Callable[[], Any] | None = work
        self._switches = switches()
        self._closing = False

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to run."""
        return self._stack.dead

    def go_on(self) -> None:
        """Run on to the next pause, or to the end."""
        self._stack.parent = getcurrent()
        self._with_its_switches(self._stack.switch)

    def pause(self, place: Any) -> None:
        """Stop here until `go_on`; to be called inside the work."""
        if not self._closing:
            self.place = place
            self._stack.parent.switch()
            self.place = None

    def close(self) -> None:
        """End it where it is: what it holds open is closed, and the rest does not run."""
        self._closing = True
        if not self.ended:
            self._stack.parent = getcurrent()
            self._with_its_switches(lambda: self._stack.throw(GreenletExit))
        self._work = self.place = None

    def _run(self) -> None:
        _RUNNING.set(self)
        self.result = self._work()

    def _with_its_switches(self, step: Callable[[], Any]) -> None:
        # No context: an interruption before its `__exit__` would leave it open, to turn switches when it is collected.
        callers = switches()
        try:
            turn(self._switches)
            step()
        finally:
            self._switches = switches()
            turn(callers)


_RUNNING: ContextVar[HeldPass | None] = ContextVar("running_pass", default=None)


def running_pass() -> HeldPass | None:
    """The pass that calls this; `None` outside of all."""
    return _RUNNING.get()


@contextmanager
def kept_modules(model: nn.Module) -> Iterator[None]:
    """Put the modules of a model back in their places on exit.

    A forward that changes them for a while, and puts back what it found, puts back what another pass has changed.
    """
    before = [(module, dict(module._modules)) for module in model.modules()]
    try:
        yield
    finally:
        for module, children in before:
            if module._modules != children:
                module._modules.clear()
                module._modules.update(children)
