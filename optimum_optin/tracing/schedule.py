"""A schedule of questions: those that no reader could confuse are asked in one pass."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from ..tainting.barriers import Taint
from ..tainting.passes import Passes, Untraceable
from .kinds import Reached

NAN, NOISE = False, True
"""By what indices are spoilt."""


class Spoil(NamedTuple):
    """What is spoilt for one question: indices of a dimension, by NaN or by finite noise."""

    index: Tensor
    noise: bool = NAN


def by(taints: Sequence[bool], asking: Generator[Tensor, Reached, Any]) -> Generator[Spoil, Reached, Any]:
    """Ask by each of some taints: what is reached is what any of them reaches."""
    reached = None
    while True:
        try:
            index = asking.send(reached)
        except StopIteration as stop:
            return stop.value
        reached = {}
        for noise in taints:
            for reader, mask in (yield Spoil(index, noise)).items():
                reached[reader] = reached[reader] | mask if reader in reached else mask


@dataclass(eq=False)
class Question:
    """What is asked about one dimension of some tensors.

    Args:
        names: the tensors.
        dim: the dimension.
        readers: all that the tensors may reach, as bits (`Passes.readers_of`).
        begin: makes the generator that asks: it yields `Spoil`, is sent what that reaches, and returns the answer.
            It is called when its turn comes.
    """

    names: tuple[str, ...]
    dim: int
    readers: int
    begin: Callable[[], Generator[Any, Reached, Any]]
    answer: Any = None
    error: str | None = None


def ask(passes: Passes, questions: Iterable[Question]) -> None:
    """Ask all questions; each has its `answer` afterwards, or an `error`.

    Questions that may reach the same reader wait for each other; the others share passes.

    Args:
        passes: of the model.
        questions: in the order in which those that meet are asked.
    """
    waiting, running = list(questions), []
    while waiting or running:
        busy = 0
        for each in running:
            busy |= each.question.readers
        later = []
        for question in waiting:
            if question.readers & busy:
                later.append(question)
            else:
                busy |= question.readers
                running.append(_Asked(question))
        waiting = later
        _answer(passes, [each for each in running if each.wants is not None])
        running = [each for each in running if each.wants is not None]


class _Asked:
    """A question that is being asked."""

    def __init__(self, question: Question) -> None:
        self.question, self._generator = question, question.begin()
        self.wants: Spoil | None = None
        self.send(None)

    def send(self, reached: Reached | None) -> None:
        try:
            wants = self._generator.send(reached)
        except StopIteration as stop:
            self.wants, self.question.answer = None, stop.value
            return
        self.wants = wants

    def fail(self, reason: str) -> None:
        self.wants, self.question.error = None, reason

    def taint(self, passes: Passes) -> Taint:
        names, dim, index = self.question.names, self.question.dim, self.wants.index
        return {name: (dim, (index if isinstance(index, Tensor) else index[name]).to(passes.device)) for name in names}


def _answer(passes: Passes, asked: list[_Asked]) -> None:
    """One pass for all that want noise, or one for all that do not."""
    if not asked:
        return
    together = [each for each in asked if each.wants.noise == asked[0].wants.noise]
    taint: dict[str, Any] = {}
    for each in together:
        taint |= each.taint(passes)
    try:
        reached, astray = passes.reach(taint, asked[0].wants.noise)
    except Untraceable as error:
        if len(together) == 1:
            together[0].fail(str(error))
            return
        astray = True
    if astray and len(together) > 1:  # who led the pass astray shows if each goes alone
        for each in together:
            _answer(passes, [each])
        return
    for each in together:
        own = passes.readers_in(each.question.readers)
        if len(together) == 1 and (other := next((reader for reader in reached if reader not in own), None)):
            each.fail(f"what runs depends on values: {other.tensor} is reached now and then")
        else:
            each.send({reader: mask for reader, mask in reached.items() if reader in own})
