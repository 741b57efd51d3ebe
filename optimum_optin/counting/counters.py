"""Counters: attributes that must follow when units go, found by cutting a copy and comparing it with a masked model.

Which of a module's numbers count units, no one says: a head count may be what a reshape goes by, or not be read at all.
So a layer is cut to half of its units, and to a few, with some candidates set, until it does what it does masked.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Group
from ..editing.masking import masked
from ..editing.surgery import rewrite
from ..keeping.interruption import raise_interruption
from ..running.batch import Batch
from ..running.forward import call_model
from ..running.linears import CONVOLUTIONS

_MOST_TRIALS = 80
_MANY = 32  # units, of which a few may have to be a multiple of 8
_ROUNDING = {torch.float64: 1e-7, torch.float32: 1e-4}  # others: half precision
_ROUGH = 5e-2
_NAMED = re.compile(r"head[^.]*$")
_SHAPES = {"in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels", "nx", "nf"}

Counters = Mapping[str, int | Fraction]
"""Path of an attribute -> how much one unit counts."""


class NotCut(Exception):
    """Why no setting of counters makes a cut model do what it does masked."""


@torch.no_grad()
def counters_of(model: nn.Module, group: Group, part: str, layer: str, sample: Batch) -> tuple[Counters, int]:
    """Attributes that count a group's units: path -> how much one counts; and how few units may stay.

    Args:
        model: frozen; unchanged.
        group: a group without counters.
        part: path of the smallest module around all that the group's units own.
        layer: path of the layer that the group is in.
        sample: what to run.

    Raises:
        NotCut: says what happened.
    """
    candidates = dict(_candidates(model, part, group))
    trials = _Trials(model, group, candidates, layer, sample)
    few = -(-group.units // 32) * 8 if group.units >= _MANY else group.parts
    problem = "there is nothing to try"
    for place, names in enumerate(itertools.islice(_choices(candidates, group), _MOST_TRIALS)):
        found = trials.problem(names, group.every_other()) or trials.problem(names, group.first(few))
        if found is None:
            needed = trials.needed(names, [group.every_other(), group.first(few)])
            fewest = map(group.first, (0, 1, few))
            least = next(mask for mask in fewest if mask.sum() >= few or trials.problem(needed, mask) is None)
            return {name: _amount(candidates[name], group.units) for name in needed}, int(least.sum())
        problem = problem if place else found
    raise NotCut(problem)


class _Trials:
    """Cuts of a layer with some of its numbers set, each taken back."""

    def __init__(self, model: nn.Module, group: Group, candidates: Mapping[str, int], layer: str, sample: Batch):
        self.model, self.group, self.candidates, self.layer, self.sample = model, group, candidates, layer, sample
        readers = {each.tensor.rpartition(".")[0] for each in group.cut.reads}
        self.watched = [*(each for each in readers if _returns_sums(model.get_submodule(each))), layer]
        self.copied = copy.deepcopy(model, {id(each): each for each in (*model.parameters(), *model.buffers())})
        self._masked: dict[tuple[bool, ...], list[Tensor]] = {}

    def problem(self, names: Sequence[str], mask: Tensor) -> str | None:
        """How a copy, cut with these counters, differs from the masked model; `None` if it does not."""
        counters = {name: _amount(self.candidates[name], self.group.units) for name in names}
        group = replace(self.group, cut=replace(self.group.cut, counters=counters))
        wanted = self._wanted(mask)
        left = f"with {int(mask.sum())} of {len(mask)} units left"
        try:
            with undone(self.copied):
                rewrite(self.copied, [group], {group.key: mask})
                found = _states(self.copied, self.watched, self.layer, self.sample)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a forward may raise that cannot deal with it
            raise_interruption(error)
            message = str(error).strip().partition("\n")[0]
            return f"{left}, it does not run ({type(error).__name__}: {message})"
        # What has another shape, such as attention weights or a bias by head, cannot be compared; layers return more.
        pairs = [(one, other) for one, other in zip(found, wanted, strict=False) if one.shape == other.shape]
        off = max((_difference(*pair) for pair in pairs), default=float("inf"))
        rounding = _ROUNDING.get(wanted[0].dtype if wanted else torch.float32, _ROUGH)
        return f"{left}, it is {off:.2g} of its size off what it is masked" if off > rounding else None

    def needed(self, names: Sequence[str], masks: Sequence[Tensor]) -> list[str]:
        """Those of the counters that a pass goes by, or that are called a number of heads; the rest is left alone."""
        needed = list(names)
        for name in names:
            fewer = [each for each in needed if each != name]
            if not _NAMED.search(name) and all(self.problem(fewer, mask) is None for mask in masks):
                needed = fewer
        return needed

    def _wanted(self, mask: Tensor) -> list[Tensor]:
        key = tuple(mask.tolist())
        if key not in self._masked:
            with masked(self.model, [self.group], {self.group.key: mask}):
                self._masked[key] = _states(self.model, self.watched, self.layer, self.sample)
        return self._masked[key]


def _returns_sums(reader: nn.Module) -> bool:
    """Whether what a module returns is what its weight makes of the units: a convolution may hold its padding."""
    return not reader._modules or isinstance(reader, CONVOLUTIONS)


def _choices(candidates: Mapping[str, int], group: Group) -> Iterator[tuple[str, ...]]:
    """Sets of attributes to try: all that are numbers of the group's; none; those less a few; a few; all."""
    numbers = _numbers_of(group)
    exact = [name for name, value in candidates.items() if value in numbers and ".config." not in name]
    named = [name for name in exact if _NAMED.search(name)]
    in_config = [name for name in candidates if ".config." in name]
    others = [name for name in candidates if name not in (*exact, *in_config)]
    tried: set[frozenset[str]] = set()

    def new(names: Sequence[str]) -> bool:
        fresh = frozenset(names) not in tried
        tried.add(frozenset(names))
        return fresh

    orders: list[Any] = [[named], [exact], [[]], [[*exact, *others]]]
    for count in (1, 2):
        orders.append([name for name in exact if name not in left] for left in itertools.combinations(exact, count))
        orders.append(itertools.combinations(exact, count))
        orders.append([*exact, *some] for some in itertools.combinations(others, count))
        orders.append(itertools.combinations(others, count))
    orders.append([*exact, *some] for count in (1, 2) for some in itertools.combinations(in_config, count))
    yield from (tuple(names) for order in orders for names in order if new(names))


def _candidates(model: nn.Module, part: str, group: Group) -> Iterator[tuple[str, int]]:
    """Whole numbers that are multiples of the units, or count those of a part, of the modules in a part of the model
    and of their own configs."""
    for path, module in model.get_submodule(part).named_modules(prefix=part):
        for name, value in vars(module).items():
            if _counts(value, group) and name not in _SHAPES and not name.startswith("_"):
                yield f"{path}.{name}".removeprefix("."), value
    for path, module in model.get_submodule(part).named_modules(prefix=part):
        config = vars(module).get("config")
        for name, value in (vars(config) if config is not None else {}).items():
            if _counts(value, group) and not name.startswith("_") and ("head" in name or "intermediate" in name):
                yield f"{path}.config.{name}".removeprefix("."), value


def _counts(value: Any, group: Group) -> bool:
    return type(value) is int and value > 0 and (value % group.units == 0 or value == group.units // group.parts)


def _amount(value: int, units: int) -> int | Fraction:
    """How much of a number one unit counts."""
    return value // units if value % units == 0 else Fraction(value, units)


def _numbers_of(group: Group) -> set[int]:
    """Numbers that may well count the group's units: how many there are, and of what they own in each tensor."""
    blocks = (*group.cut.writes, *group.cut.reads)
    owned = {width for part in blocks for width in (*part.widths, sum(part.widths))}
    return {group.units, group.units // group.parts, *(group.units * width for width in owned)}


class _Stop(Exception):
    """Ends a pass after the layer."""


def _states(model: nn.Module, paths: Sequence[str], layer: str, sample: Batch) -> list[Tensor]:
    """What modules return in a pass that ends with the layer; the model's outputs if the layer is the model.

    Where readers are among the modules, the pass goes on to the first: what the layer returns may be the units.
    """
    states: list[Tensor] = []
    awaited = [{layer}, {*paths} - {layer} or {layer}]  # one of each
    with ExitStack() as stack:
        for path in paths if layer else ():
            hook = _recording_hook(states, path, awaited)
            stack.callback(model.get_submodule(path).register_forward_hook(hook).remove)
        with suppress(_Stop):
            outputs = call_model(model, sample)
            states += _floats(outputs)
    return states


def _recording_hook(states: list[Tensor], path: str, awaited: list[set[str]]):
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        states.extend(_floats(output))
        awaited[:] = [paths for paths in awaited if path not in paths]
        if not awaited:
            raise _Stop

    return hook


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, (tuple, list)) else ()
    return [each for part in parts for each in _floats(part)]


def _difference(found: Tensor, expected: Tensor) -> float:
    off, size = float((found.double() - expected.double()).norm()), float(expected.double().norm())
    return 0.0 if off == 0 else off / size if size else float("inf")


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Take back, on exit, whatever was set on a model's modules inside."""
    before = [
        (module, type(module), dict(vars(module)), {name: dict(each) for name, each in _dicts(module)})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, kind, attributes, dicts in before:
            module.__class__ = kind
            vars(module).clear()
            vars(module).update(attributes)
            for name, each in _dicts(module):
                each.clear()
                each.update(dicts[name])


def _dicts(module: nn.Module) -> list[tuple[str, dict]]:
    """What a module keeps by name: parameters, buffers, modules and hooks."""
    return [(name, each) for name, each in vars(module).items() if isinstance(each, dict)]
