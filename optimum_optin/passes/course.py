"""The course of a pass: where it comes by groups, in which order, and where their outputs join the stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Group
from ..running.batch import Batch
from ..running.forward import call_model
from .joins import Join, watched_joins


@dataclass(frozen=True)
class Stop:
    """A place where a pass comes by a group.

    Args:
        group: the group.
        producers: paths of those of its producers that read one and the same tensor, in order of execution; none at its
            consumer.
    """

    group: Group
    producers: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """The module that the pass is about to run."""
        return self.producers[0] if self.producers else self.group.consumer


@dataclass(frozen=True)
class Course:
    """Where passes stop, in order of execution.

    Args:
        stops: where producers read, and where consumers do.
        joins: group key -> where its output joins the residual stream; see `watched_joins`.
    """

    stops: tuple[Stop, ...]
    joins: Mapping[str, Join]

    def within(self, models: Sequence[nn.Module]) -> Course:
        """The course with joins by places that all of these models have."""
        joins = {key: join.within(models) for key, join in self.joins.items()}
        return replace(self, joins={key: join for key, join in joins.items() if join})

    def reads(self, group: Group) -> int:
        """How many different tensors a group's producers read."""
        return sum(1 for stop in self.stops if stop.producers and stop.group.key == group.key)


@torch.no_grad()
def find_course(model: nn.Module, groups: Sequence[Group], sample: Batch) -> Course:
    """Find the course by running the model once.

    Args:
        model: the model, frozen.
        groups: its groups, in any order; those without a consumer are passed over.
        sample: its inputs, of two samples or more if there are so many; groups that it does not reach have no stops.
    """
    watch, groups = _Watch(), [group for group in groups if group.consumer is not None]
    with ExitStack() as stack:
        joins = stack.enter_context(watched_joins(model, groups))
        for group in groups:
            for producer in group.producers:
                hook = watch.reading_hook(group, producer.path)
                stack.callback(model.get_submodule(producer.path).register_forward_pre_hook(hook).remove)
            hook = watch.ending_hook(group)
            stack.callback(model.get_submodule(group.consumer).register_forward_pre_hook(hook).remove)
        call_model(model, sample)
    return Course(tuple(watch.stops), joins)


class _Watch:
    """Notes stops as a model runs; of a linear that runs several times, the first."""

    def __init__(self) -> None:
        self.stops: list[Stop] = []
        self._read: dict[str, list[tuple[int, Tensor]]] = {}
        self._seen: set[str] = set()

    def reading_hook(self, group: Group, path: str):
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if path in self._seen or group.consumer in self._seen:
                return
            self._seen.add(path)
            for index, earlier in self._read.setdefault(group.key, []):
                if args[0] is earlier or (args[0].shape == earlier.shape and torch.equal(args[0], earlier)):
                    self.stops[index] = replace(self.stops[index], producers=(*self.stops[index].producers, path))
                    return
            self._read[group.key].append((len(self.stops), args[0]))
            self.stops.append(Stop(group, (path,)))

        return hook

    def ending_hook(self, group: Group):
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            if group.consumer not in self._seen:
                self._seen.add(group.consumer)
                self._read.pop(group.key, None)
                self.stops.append(Stop(group))

        return hook
