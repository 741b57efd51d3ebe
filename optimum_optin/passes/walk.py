"""Walks: a calibration batch on its way through the dense and the pruned model, in one pass of each that pauses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import HEADS, QUERY_HEADS, Consumer
from ..running.forward import call_model, first_of
from ..running.linears import drawn_places, rows_read, rows_written
from .course import Course, Stop
from .joins import Join, Place
from .lookahead import late_term
from .pauses import HeldPass, running_pass
from .starts import Start, real_tokens

Rows = tuple[Tensor, Tensor, Tensor]
"""Inputs and errors of a regression, of shape (valid tokens, features), and a weight per row."""


class Walk:
    """One calibration batch on its way through the dense model, which must be `watched`.

    It pauses where producers are about to read, and notes on its way what the sublayers before have made of it.

    Args:
        model: the dense model.
        course: where to stop.
        start: the batch, and what the dense model says about it.

    Attributes:
        sources: path of each stop of producers that was reached -> what they read.
        targets: path of each consumer that was passed -> what the refit aims at, with its channels last: the residual
            stream after the sublayer or, where no join was found, its output alone (behind a batch norm, if one reads
            it). Where the join is late, `target` adds the other term.
        filled: key of each group in windows -> which rows are tokens, rather than zeros that fill up windows.
    """

    def __init__(self, model: nn.Module, course: Course, start: Start):
        self.start = start
        self.course = course
        self._model = model
        self.sources: dict[str, Tensor] = {}
        self.targets: dict[str, Tensor] = {}
        self.filled: dict[str, Tensor] = {}
        self._passed: set[str] = set()
        self._complete: set[str] = set()
        self._stream = _Stream(course)
        self._held = HeldPass(lambda: call_model(model, start.batch), self)

    def reach(self, stop: Stop) -> None:
        """Go on until what refits need to know of a stop is known, or to the end if the batch does not come by it."""
        known = self.targets if stop.consumer else self.sources
        while stop.path not in known and not self._held.ended:
            self._held.go_on()

    def target(self, stop: Stop) -> Tensor:
        """What the refit of a consumer aims at, see `targets`.

        Args:
            stop: the consumer's stop, which was reached.
        """
        join = self.course.joins.get(stop.path)
        if join is not None and join.is_late and stop.path not in self._complete:
            term = late_term(self._model, self.start.batch, stop.consumer, join)
            self.targets[stop.path] = join.stream([term], self.targets[stop.path])
            self._complete.add(stop.path)
        return self.targets[stop.path]

    def leave(self, stop: Stop) -> None:
        """Forget what is known of a stop; after the last one, end the pass."""
        (self.targets if stop.consumer else self.sources).pop(stop.path, None)
        if stop is self.course.stops[-1]:
            self.close()

    def close(self) -> None:
        """End the pass where it is."""
        self._held.close()
        self.sources, self.targets, self._stream = {}, {}, _Stream(self.course)

    def on_reading(self, stop: Stop, inputs: Tensor, others: tuple) -> None:
        """Called in the pass where a stop is; if its module runs several times, only the first counts."""
        if stop.consumer is None and stop.path not in self._passed:
            self._passed.add(stop.path)
            if stop.group.residual.windowed:
                self.filled[stop.group.key] = inputs.any(-1)
            self.sources[stop.path] = inputs
            self._held.pause(stop.path)

    def on_term(self, consumer: Consumer, number: int, term: Tensor) -> None:
        """Called in the pass where a term of a consumer's stream is."""
        self._stream.add(consumer, number, term)

    def on_writing(self, consumer: Consumer, output: Tensor) -> None:
        """Called in the pass when a consumer has run, and the batch norm behind it."""
        if consumer.path in self._passed:
            return
        self._passed.add(consumer.path)
        rows = rows_written(self._model.get_submodule(consumer.path), output)
        joined = consumer.path in self.course.joins and not self.course.joins[consumer.path].is_late
        target = self._stream.after(consumer, rows)
        self.targets[consumer.path] = target if joined else target.clone()  # an activation may change it in place
        self._stream.leave(consumer)
        self._held.pause(None)


class PrunedWalk:
    """The same batch on its way through a pruned model, which must be `watched`; it pauses at every stop.

    Args:
        model: the pruned model.
        dense: the dense model's walk.
        kept: path of every consumer that writes units itself -> which of its outputs are left, ascending.
    """

    def __init__(self, model: nn.Module, dense: Walk, kept: Mapping[str, Tensor] | None = None):
        self.dense = dense
        self.model = model
        self._kept = kept or {}
        self._inputs: Tensor | None = None
        self._others: tuple = ()
        self._goals: dict[str, Tensor] = {}
        self._late: Tensor | None = None
        self._passed: set[str] = set()
        self._stream = _Stream(dense.course, self._kept)
        self._held = HeldPass(lambda: call_model(model, dense.start.batch), self)

    def reach(self, stop: Stop) -> bool:
        """Go on to a stop; whether the batch comes by it, in the dense model as well."""
        while not self._held.ended and self._held.place in (None, *self._passed):
            self._held.go_on()
        reached = self._held.place == stop.path
        return reached and (stop.path in self.dense.sources or stop.path in self.dense.targets)

    def leave(self, stop: Stop) -> None:
        """Pass by a stop from now on; after the last one, end the pass."""
        self._passed.add(stop.path)
        self._inputs, self._others, self._late, self._goals = None, (), None, {}
        if stop is self.dense.course.stops[-1]:
            self.close()

    def close(self) -> None:
        """End the pass where it is."""
        self._held.close()
        self._inputs, self._others, self._stream = None, (), _Stream(self.dense.course, self._kept)

    def input_errors(self, stop: Stop) -> Rows | None:
        """What producers read in the pruned model, and by how much it falls short of the dense model's.

        Args:
            stop: the producers' stop, which was reached.

        Returns:
            The rows; `None` if it cannot be told which are tokens.
        """
        errors = self.dense.sources[stop.path].to(self._inputs.device) - self._inputs
        told = self._told(stop)
        return None if told is None else _rows(self._inputs, errors, *told)

    def map_errors(self, stop: Stop, path: str, norm: nn.Module | None = None, rectified: bool = False) -> Rows:
        """What a producer that is a convolution reads in the pruned model, and how far what it makes of it falls short
        of what it made of the dense model's input when this was first asked.

        Args:
            stop: the producers' stop, which was reached.
            path: the producer.
            norm: the batch norm that reads what it writes, if one does: errors are those of what that makes of it.
            rectified: see `output_errors`.
        """
        producer = self.model.get_submodule(path)

        def written(inputs: Tensor) -> Tensor:
            return _run(producer, inputs) if norm is None else _run(norm, _run(producer, inputs))

        found = written(self._inputs)
        places = self._places(producer, found)
        if path not in self._goals:
            source = self.dense.sources[stop.path].to(self._inputs.device)
            self._goals[path] = rows_written(producer, written(source), places)
        errors = _errors(self._goals[path], rows_written(producer, found, places), rectified)
        weights = self._weights(stop)
        if weights.shape != (len(found), found[0, 0].numel()):  # the consumer works at another scale
            weights = errors.new_ones(errors.shape[:-1])
        elif places is not None:
            weights = weights[:, places.to(weights.device)]
        return _rows(rows_read(producer, self._inputs, places), errors, weights, None)

    def output_errors(self, stop: Stop, rectified: bool = False) -> Rows:
        """What the group's consumer reads in the pruned model, and how far the stream after it falls short.

        Args:
            stop: the consumer's stop, which was reached.
            rectified: whether only what a ReLU lets pass counts.
        """
        consumer = self.model.get_submodule(stop.path)
        written = _run(consumer, self._inputs)
        places = self._places(consumer, written)
        if stop.consumer.norm is not None:
            written = _run(self.model.get_submodule(stop.consumer.norm), written)
        stream = self._stream.after(stop.consumer, rows_written(consumer, written))
        if (join := self._late_join(stop)) is not None:
            if self._late is None:
                self._late = late_term(self.model, self.dense.start.batch, stop.consumer, join)
            stream = join.stream([self._late], rows_written(consumer, written))
        target = self.dense.target(stop).to(stream.device)
        if stop.path in self._kept:
            target = target[..., self._kept[stop.path].to(target.device)]
        rows, real = rows_read(consumer, self._inputs, places), real_tokens(stop.group, self.dense.start.real)
        return _rows(rows, *_at(places, _errors(target, stream, rectified), self._weights(stop)), real)

    def experts_errors(self, stop: Stop) -> tuple[tuple, Tensor, Tensor]:
        """How far the stream after packed experts falls short.

        Args:
            stop: their stop, which was reached.

        Returns:
            What they are called with in the pruned model; errors of all tokens, shape (tokens, channels); and the
            weights of the tokens, 0 where they are padding.
        """
        experts = self.model.get_submodule(stop.path)
        stream = self._stream.after(stop.consumer, _run(experts, self._inputs, *self._others))
        errors = self.dense.target(stop).to(stream.device) - stream
        weights, real = self._weights(stop).to(errors), real_tokens(stop.group, self.dense.start.real)
        weights = weights.flatten() if real is None else weights.flatten() * real.flatten().to(errors)
        return (self._inputs, *self._others), errors, weights

    def on_reading(self, stop: Stop, inputs: Tensor, others: tuple) -> None:
        """See `Walk`."""
        if stop.path not in self._passed:
            self._inputs, self._others = inputs, others
            self._held.pause(stop.path)

    def on_term(self, consumer: Consumer, number: int, term: Tensor) -> None:
        """See `Walk`."""
        self._stream.add(consumer, number, term)

    def on_writing(self, consumer: Consumer, output: Tensor) -> None:
        """See `Walk`."""
        self._stream.leave(consumer)

    def _late_join(self, stop: Stop) -> Join | None:
        """The join of a stop's consumer, if it is late."""
        join = self.dense.course.joins.get(stop.path)
        if join is None or not join.is_late:
            return None
        return join.of(self._kept[stop.path]) if stop.path in self._kept else join

    def _places(self, module: nn.Module, output: Tensor) -> Tensor | None:
        return drawn_places(module, output, torch.Generator().manual_seed(self.dense.start.seed))

    def _told(self, stop: Stop) -> tuple[Tensor, Tensor | None] | None:
        """Weights of the rows that producers read, and which of them are real tokens (`None` for all)."""
        if stop.is_head:  # it may read one row for each sample
            return self._inputs.new_ones(self._inputs.shape[:-1]), None
        weights, real = self._weights(stop), real_tokens(stop.group, self.dense.start.real)
        if self.dense.course.reads(stop.group) > 1:  # one may be another stack's sequence
            alike = [mask for mask in self.dense.start.real.values() if mask.shape == self._inputs.shape[:-1]]
            if not alike:
                return None
            real = reduce(torch.logical_and, alike)
            if weights.shape != real.shape or stop.group.role not in (HEADS, QUERY_HEADS):
                weights = real.float()
        if stop.group.role in (
            HEADS,
            QUERY_HEADS,
        ):  # attention reads on behalf of others: all weigh the same
            weights = (weights > 0).float()
        if weights.numel() != self._inputs[..., 0].numel():  # queries are pooled (Hiera), or another scale is written
            weights = self._inputs.new_ones(self._inputs.shape[:-1])
        return weights, real

    def _weights(self, stop: Stop) -> Tensor:
        """The weights of the rows that a consumer writes; for producers, the first consumer of what they write."""
        weights = self.dense.start.weights[(stop.consumer or stop.group.consumers[0]).path]
        if stop.group.key in self.dense.filled:  # what windows are filled up with gives an output that is dropped
            weights = weights * self.dense.filled[stop.group.key].to(weights)
        return weights


class _Stream:
    """The terms of residual streams, from where a pass has them in hand to where a consumer's output is added.

    Args:
        course: the course, with its joins.
        kept: see `PrunedWalk`.
    """

    def __init__(self, course: Course, kept: Mapping[str, Tensor] | None = None):
        self._joins = course.joins
        self._kept = kept or {}
        self._terms: dict[str, dict[int, Tensor]] = {}
        self._left: set[str] = set()

    def add(self, consumer: Consumer, number: int, term: Tensor) -> None:
        if consumer.path not in self._left:
            self._terms.setdefault(consumer.path, {})[number] = term

    def after(self, consumer: Consumer, output: Tensor) -> Tensor:
        """The stream after a sublayer or, where no join was found or it is late, its output alone; of its shape."""
        join = self._joins.get(consumer.path)
        if join is None or join.is_late:
            return output
        if consumer.path in self._kept:
            join = join.of(self._kept[consumer.path])
        terms = self._terms.get(consumer.path, {})
        for number, places in enumerate(join.terms):
            if number not in terms:
                raise ValueError(f"its output is added to something of {places[0].path}, which did not run")
        return join.stream([terms[number] for number in range(len(join.terms))], output)

    def leave(self, consumer: Consumer) -> None:
        self._left.add(consumer.path)
        self._terms.pop(consumer.path, None)


@contextmanager
def watched(model: nn.Module, course: Course, stops: Sequence[Stop]) -> Iterator[None]:
    """Let the walks through a model know what they come by; other passes of it are as ever. Undone on exit.

    Args:
        model: the dense model or a pruned one.
        course: the course.
        stops: those of its stops that the model has.
    """
    with ExitStack() as stack:
        for stop in stops:
            module = model.get_submodule(stop.path)
            stack.callback(module.register_forward_pre_hook(_reading_hook(stop)).remove)
            if stop.consumer:
                last = module if stop.consumer.norm is None else model.get_submodule(stop.consumer.norm)
                stack.callback(last.register_forward_hook(_writing_hook(stop.consumer)).remove)
                join = course.joins.get(stop.path)
                for number, places in enumerate(join.terms if join else ()):
                    for place in places:
                        hook = _placed(model.get_submodule(place.path), place, stop.consumer, number)
                        stack.callback(hook.remove)
        yield


def _placed(module: nn.Module, place: Place, consumer: Consumer, number: int) -> Any:
    """The hook, which is on, that tells walks a term of a consumer's stream."""

    def read(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        _tell(lambda walk: walk.on_term(consumer, number, place.read(args, kwargs)))

    def returned(module: nn.Module, args: tuple, output: Any) -> None:
        _tell(lambda walk: walk.on_term(consumer, number, first_of(output)))

    if place.argument is None:
        return module.register_forward_hook(returned)
    return module.register_forward_pre_hook(read, with_kwargs=True, prepend=True)


def _reading_hook(stop: Stop):
    def hook(module: nn.Module, args: tuple) -> None:
        _tell(lambda walk: walk.on_reading(stop, args[0], args[1:]))

    return hook


def _writing_hook(consumer: Consumer):
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        _tell(lambda walk: walk.on_writing(consumer, output))

    return hook


def _tell(say: Callable[[Walk | PrunedWalk], None]) -> None:
    if (held := running_pass()) is not None:
        say(held.owner)


def _run(module: nn.Module, inputs: Tensor, *others: Any) -> Tensor:
    """What a module makes of its input; not by a call, which would be another run for its hooks."""
    return type(module).forward(module, inputs, *others)


def _errors(target: Tensor, written: Tensor, rectified: bool) -> Tensor:
    """How far what is written falls short; to a ReLU, all below zero is alike."""
    errors = target - written
    return torch.where(target > 0, errors, -written.clamp_min(0)) if rectified else errors


def _at(places: Tensor | None, errors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Errors of shape (batch, places, outputs) and weights of shape (batch, places), at some of the places."""
    if places is None:
        return errors, weights
    return errors[:, places.to(errors.device)], weights[:, places.to(weights.device)]


def _rows(inputs: Tensor, errors: Tensor, weights: Tensor, real: Tensor | None) -> Rows:
    rows = inputs, errors, weights.reshape(inputs.shape[:-1]).to(inputs.device)
    if real is None:
        return tuple(each.flatten(0, each.dim() - 1 if each is rows[2] else -2) for each in rows)
    real = real.reshape(inputs.shape[:-1]).to(inputs.device)
    return tuple(each[real] for each in rows)
