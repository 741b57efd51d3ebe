"""The course of a pass: where it comes by groups, in which order, and where their outputs join the stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Consumer, Group
from ..running.batch import Batch
from ..running.forward import logits_of, run_model
from ..running.linears import is_convolution, is_linear
from .joins import Join, watched_joins


@dataclass(frozen=True)
class Stop:
    """A place where a pass comes by a group.

    Args:
        group: the group.
        producers: paths of those of its producers that read one and the same tensor, in order of execution; none at a
            consumer.
        consumer: one of its consumers; `None` at producers.
        is_head: whether this is the model's last linear or convolution, which belongs to no group: it is corrected as
            producers are. The group is the last one before it.
    """

    group: Group
    producers: tuple[str, ...] = ()
    consumer: Consumer | None = None
    is_head: bool = False

    @property
    def path(self) -> str:
        """The module that the pass is about to run."""
        return self.producers[0] if self.consumer is None else self.consumer.path

    @property
    def paths(self) -> frozenset[str]:
        """All modules that are refitted there."""
        return frozenset(self.producers if self.consumer is None else (self.consumer.path,))


@dataclass(frozen=True)
class Course:
    """Where passes stop, in order of execution.

    Args:
        stops: where producers read, and where consumers do.
        joins: path of a consumer -> where its output joins the residual stream; see `watched_joins`.
        rectified: paths of what a ReLU reads alone; see `watched_joins`.
    """

    stops: tuple[Stop, ...]
    joins: Mapping[str, Join]
    rectified: frozenset[str] = frozenset()

    def within(self, models: Sequence[nn.Module]) -> Course:
        """The course with joins by places that all of these models have."""
        joins = {path: join.within(models) for path, join in self.joins.items()}
        partial = {
            path for path, join in joins.items() if join is None or len(join.terms) < len(self.joins[path].terms)
        }
        joins = {path: join for path, join in joins.items() if join}
        return replace(self, joins=joins, rectified=self.rectified - partial)

    def reads(self, group: Group) -> int:
        """How many different tensors a group's producers read."""
        return sum(1 for stop in self.stops if stop.producers and not stop.is_head and stop.group.key == group.key)


@torch.no_grad()
def find_course(model: nn.Module, groups: Sequence[Group], sample: Batch) -> Course:
    """Find the course by running the model once.

    Args:
        model: the model, frozen.
        groups: its groups, in any order; those without a consumer are passed over.
        sample: its inputs, of two samples or more if there are so many; groups that it does not reach have no stops.
    """
    watch, groups = _Watch(), [group for group in groups if group.consumers]
    consumers = {each.path for group in groups for each in group.consumers}
    with ExitStack() as stack:
        joins, rectified = stack.enter_context(watched_joins(model, groups))
        for group in groups:
            for producer in group.producers:
                if producer.path in consumers:  # of another group, to be refitted as such
                    continue
                hook = watch.reading_hook(group, producer.path)
                stack.callback(model.get_submodule(producer.path).register_forward_pre_hook(hook).remove)
            for consumer in group.consumers:
                hook = watch.ending_hook(group, consumer)
                stack.callback(model.get_submodule(consumer.path).register_forward_pre_hook(hook).remove)
        grouped = consumers | {each.path for group in groups for each in group.producers}
        for path, module in model.named_modules():
            if path not in grouped and (is_linear(module) or is_convolution(module)):
                stack.callback(module.register_forward_hook(watch.returning_hook(path)).remove)
        logits = logits_of(run_model(model, sample))
    stops = watch.stops_of_single_runs()
    head = watch.head(model, logits)
    if head and stops and is_convolution(model.get_submodule(stops[-1].path)):
        stops = (*stops, Stop(stops[-1].group, (head,), is_head=True))
    return Course(stops, joins, frozenset(rectified))


class _Watch:
    """Notes stops as a model runs; of a consumer that runs several times, the first."""

    def __init__(self) -> None:
        self.stops: list[Stop] = []
        self._runs: Counter[str] = Counter()
        self._read: dict[str, list[tuple[int, Tensor]]] = {}
        self._seen: set[str] = set()
        self._returned: dict[str, list[Tensor]] = {}

    def head(self, model: nn.Module, logits: Tensor | None) -> str | None:
        """The module that wrote the logits, in its only run and by a weight of its own; `None` if there is none."""
        for path, (output, *others) in self._returned.items():
            if logits is None or others or not _alike(output, logits):
                continue
            weight = model.get_submodule(path).weight
            if sum(each is weight for _, each in model.named_parameters(remove_duplicate=False)) == 1:
                return path
        return None

    def stops_of_single_runs(self) -> tuple[Stop, ...]:
        """The stops without producers that run several times: what corrects them for one input spoils the others."""
        stops = []
        for stop in self.stops:
            once = tuple(path for path in stop.producers if self._runs[path] == 1)
            if once or stop.consumer:
                stops.append(replace(stop, producers=once))
        return tuple(stops)

    def reading_hook(self, group: Group, path: str):
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._runs[path] += 1
            if path in self._seen or all(each.path in self._seen for each in group.consumers):
                return
            self._seen.add(path)
            for index, earlier in self._read.setdefault(group.key, []):
                if _alike(args[0], earlier):
                    self.stops[index] = replace(self.stops[index], producers=(*self.stops[index].producers, path))
                    return
            self._read[group.key].append((len(self.stops), args[0]))
            self.stops.append(Stop(group, (path,)))

        return hook

    def returning_hook(self, path: str):
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):  # a router of a class of its own returns several
                self._returned.setdefault(path, []).append(output)

        return hook

    def ending_hook(self, group: Group, consumer: Consumer):
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if consumer.path not in self._seen:
                self._seen.add(consumer.path)
                self._read.pop(group.key, None)
                self.stops.append(Stop(group, consumer=consumer))

        return hook


def _alike(one: Tensor, other: Tensor) -> bool:
    return one is other or (one.shape == other.shape and torch.equal(one, other))
