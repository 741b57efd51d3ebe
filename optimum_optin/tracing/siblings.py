"""Siblings: experts that the sample does not reach have the groups of those that it does.

A router sends tokens to a few of many modules of one class. Of those that did not run, a pass tells nothing; but where
class, names and shapes are the same, so are the groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from torch import nn

from ..tainting.tensors import Tensors
from .found import FoundGroup, Slice


def groups_of_siblings(
    model: nn.Module, found: Iterable[FoundGroup], tensors: Tensors, used: set[str]
) -> list[FoundGroup]:
    """The groups of modules that did not run, as those of modules of the same class that did.

    Args:
        model: that was traced.
        found: its groups.
        tensors: its tensors.
        used: names of the tensors that some operation read.
    """
    modules = dict(model.named_modules())
    groups: dict[tuple[str, ...], FoundGroup] = {}
    for group in found:
        for path in _siblings(group.module, modules):
            inside = [name for name in tensors.by_name if name.startswith(f"{path}.")]
            if used.isdisjoint(inside) and type(modules[path]) is type(modules[group.module]):
                sibling = _moved(group, path, tensors)
                if sibling is not None:
                    groups.setdefault(tuple(each.tensor for each in sibling.reads), sibling)
    return list(groups.values())


def _siblings(path: str, modules: dict[str, nn.Module]) -> Iterator[str]:
    """Paths of modules that differ from this one in one number."""
    for match in re.finditer(r"\d+", path):
        before, after = path[: match.start()], path[match.end() :]
        pattern = re.compile(rf"{re.escape(before)}\d+{re.escape(after)}")
        yield from (other for other in modules if other != path and pattern.fullmatch(other))


def _moved(group: FoundGroup, path: str, tensors: Tensors) -> FoundGroup | None:
    """A group's like in another module; `None` if a tensor is missing there, or of another shape."""

    def moved(part: Slice) -> Slice:
        name = path + part.tensor.removeprefix(group.module)
        if name not in tensors.by_name or tensors.by_name[name].shape != tensors.by_name[part.tensor].shape:
            raise KeyError(name)
        return replace(part, tensor=name)

    try:
        sides = [tuple(map(moved, side)) for side in (group.writes, group.reads)]
    except KeyError:
        return None
    return FoundGroup(path, *sides, shared=group.shared, like=group.module)
