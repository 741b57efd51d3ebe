"""Sizes in a config: from which attributes transformers' own class reads how many units there are, found by making it.

Skeletons are made of changed configs, and compared with cut ones: shapes of all tensors, and numbers in all modules.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import lcm
from operator import attrgetter
from typing import Any, NamedTuple

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..architectures.group import Group, Groups, stack_of
from ..editing.surgery import rewrite
from ..running.facts import measured_once
from .integrity import skeleton_of, switches_of

_MANY = 32  # units, of which only some numbers are tried
_MOST = 3  # attributes that one size is read from
_HEAD_WIDTH = "head_dim"
_DERIVED = ("inner", "intermediate", "ffn", "feed_forward")  # parts of names of sizes that a config may leave open
_OTHERS = ("_token_id", "vocab_size", "num_hidden_layers", "max_position_embeddings", "num_labels")

Shapes = dict[str, tuple[int, ...]]


class Sizes(NamedTuple):
    """How a config says the number of units.

    Args:
        fields: attributes that are proportional to it.
        values: attributes that have to be written as well, as the class would derive them from others -> dense values.
        step: a multiple of which it has to be.
    """

    fields: tuple[str, ...]
    values: Mapping[str, int]
    step: int


def sized(model: PreTrainedModel, groups: Groups) -> Groups:
    """Groups with `config_fields`, where the model's class makes such a model of its config.

    A size is one for all groups of a role in a stack, or in all stacks. Where it is that of other roles as well (T5's
    heads), it has no fields.

    Args:
        model: the model, unchanged.
        groups: its groups.
    """
    keys = tuple(group.key for group in groups)
    found = measured_once(model, ("sizes", keys), lambda: _found(model, list(groups)))
    members = tuple(_with(group, found.get(group.key)) for group in groups)
    return replace(groups, members=members)


def written(config: PreTrainedConfig, groups: Iterable[Group], count: Callable[[Group], int]) -> None:
    """Write sizes into a config, in place.

    Args:
        config: with the sizes that the groups have now.
        groups: those whose sizes change.
        count: a group -> how many units it is to have.
    """
    groups = list(groups)
    for group in groups:
        for name, value in group.config_values.items():
            _set(config, name, value)
    sizes = {
        name: attrgetter(name)(config) * count(group) // group.units for group in groups for name in group.config_fields
    }
    for name, size in sizes.items():
        _set(config, name, size)


def _with(group: Group, sizes: Sizes | None) -> Group:
    if sizes is None:
        return group
    return replace(group, config_fields=sizes.fields, config_values=sizes.values, step=sizes.step)


def _set(config: PreTrainedConfig, name: str, value: int) -> None:
    part, _, field = name.rpartition(".")
    setattr(attrgetter(part)(config) if part else config, field, value)


def _found(model: PreTrainedModel, groups: Sequence[Group]) -> dict[str, Sizes]:
    """Group key -> its sizes."""
    options, config = switches_of(model), _reread(model.config)
    dense = None if options is None or config is None else skeleton_of(model, options, config)
    if dense is None or _shapes(dense) != _shapes(model):
        return {}

    made: dict[str, PreTrainedModel | None] = {}

    def make(config: PreTrainedConfig) -> PreTrainedModel | None:
        key = config.to_json_string()
        if key not in made:
            made[key] = skeleton_of(model, options, config)
        return made[key]

    found: dict[str, Sizes] = {}
    for members in _alike(groups):
        if not any(group.key in found for group in members):
            sizes = _Trials(model.config, dense, members, make).sizes()
            found |= {group.key: sizes for group in members if sizes is not None}
    return found


def _alike(groups: Sequence[Group]) -> Iterator[list[Group]]:
    """Groups that may have one size: those of a role in a stack, then those of all stacks."""
    by_stack = {(stack_of(group.layer), group.role, group.units): [] for group in groups}
    by_role = {(group.role, group.units): [] for group in groups}
    for group in groups:
        by_stack[stack_of(group.layer), group.role, group.units].append(group)
        by_role[group.role, group.units].append(group)
    yield from (members for members in by_stack.values())
    yield from (members for members in by_role.values() if len({stack_of(group.layer) for group in members}) > 1)


class _Trials:
    """Configs with changed sizes, for some groups of equally many units.

    Args:
        config: the model's.
        dense: its skeleton.
        groups: the groups.
        make: makes a skeleton of a config.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        dense: PreTrainedModel,
        groups: Sequence[Group],
        make: Callable[[PreTrainedConfig], PreTrainedModel | None],
    ) -> None:
        self._dense_config, self._dense, self._groups, self._make = config, dense, groups, make
        self._units = groups[0].units
        self._shapes = _shapes(dense)
        self._own = {part.tensor for group in groups for part in (*group.cut.writes, *group.cut.reads)}

    def sizes(self) -> Sizes | None:
        """How the config says how many units the groups have; `None` if it does not."""
        for values in self._values():
            fields = [name for name in self._fields(values) if self._is_of_these(name, values)]
            for count in range(1, _MOST + 1):
                for some in itertools.combinations(fields, count):
                    step = self._step(some, values)
                    if step and all(self._is_cut(Sizes(some, values, step), each) for each in self._tried(step)):
                        return Sizes(some, values, step)
        return None

    def _values(self) -> Iterator[dict[str, int]]:
        """What may have to be written besides, as the config leaves it open."""
        yield {}
        config = self._dense_config
        widths = [min(part.widths) for group in self._groups for part in group.cut.writes]
        if getattr(config, _HEAD_WIDTH, None) is None and min(widths, default=1) > 1:
            yield {_HEAD_WIDTH: min(widths)}
        for name, value in vars(config).items():
            if value is None and any(part in name for part in _DERIVED):
                yield {name: self._units}

    def _fields(self, values: Mapping[str, int]) -> Iterator[str]:
        """Attributes of the config, and of configs in it, that may be proportional to the units, or those of a part."""
        inside = self._units // self._groups[0].parts
        yield from (name for name, value in values.items() if value == self._units)
        for prefix, config in _configs(self._dense_config):
            for name, value in vars(config).items():
                counts = type(value) is int and value > 0 and (value % self._units == 0 or value == inside)
                if counts and not name.startswith("_") and not name.endswith(_OTHERS):
                    yield f"{prefix}{name}"

    def _is_of_these(self, name: str, values: Mapping[str, int]) -> bool:
        """Whether an attribute changes tensors that the units own a part of, and no others."""
        for count in (self._units // 2, self._units - 1):
            made = self._made(Sizes((name,), values, 1), count)
            if made is not None:
                shapes = _shapes(made)
                changed = {each for each in {*shapes, *self._shapes} if shapes.get(each) != self._shapes.get(each)}
                return bool(changed) and changed <= self._own
        return False

    def _step(self, fields: Sequence[str], values: Mapping[str, int]) -> int | None:
        """A number of whose multiples each makes a config that can be read; `None` if not even half of the units do."""
        least = lcm(self._groups[0].parts, self._groups[0].multiple)
        for step in (each for each in range(least, self._units, least) if self._units % each == 0):
            sizes = Sizes(tuple(fields), values, step)
            counts = range(step, self._units, step) if self._units <= _MANY else self._tried(step)
            if all(self._config(sizes, count) is not None for count in counts):
                return step
        return None

    def _tried(self, step: int) -> list[int]:
        """Numbers of units that stand for all."""
        half = max(self._units // 2 // step, 1) * step
        return sorted({half, self._units - step})

    def _is_cut(self, sizes: Sizes, count: int) -> bool:
        """Whether the class makes of the config what is left of a model that is cut to so many units."""
        made = self._made(sizes, count)
        if made is None:
            return False
        cut = copy.deepcopy(self._dense)
        rewrite(cut, self._groups, {group.key: group.first(count) for group in self._groups})
        return _shapes(made) == _shapes(cut) and self._same_numbers(made, cut, count)

    def _same_numbers(self, made: nn.Module, cut: nn.Module, count: int) -> bool:
        """Whether modules hold the same numbers, but for those that count units and that a cut leaves as they were."""
        modules = dict(made.named_modules())
        for path, module in cut.named_modules():
            other = vars(modules[path])
            for name, value in vars(module).items():
                if type(value) not in (int, float, bool) or name.startswith("_"):
                    continue
                theirs = other.get(name)
                if theirs != value and not (type(theirs) is int and theirs * self._units == value * count):
                    return False
        return True

    def _made(self, sizes: Sizes, count: int) -> PreTrainedModel | None:
        config = self._config(sizes, count)
        return None if config is None else self._make(config)

    def _config(self, sizes: Sizes, count: int) -> PreTrainedConfig | None:
        """The config for so many units as it is read from disk; `None` if it is refused."""
        config = copy.deepcopy(self._dense_config)
        written(config, [_with(self._groups[0], sizes)], lambda group: count)
        return _reread(config)


def _configs(config: PreTrainedConfig) -> Iterator[tuple[str, PreTrainedConfig]]:
    """A config and those in it, with the beginning of the names of their attributes."""
    yield "", config
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            yield f"{name}.", value


def _reread(config: PreTrainedConfig) -> PreTrainedConfig | None:
    """A config as transformers reads it once it is saved; `None` if it does not."""
    data: dict[str, Any] = config.to_dict()
    data.pop("quantization_config", None)
    try:
        return type(config).from_dict(data)
    except Exception:  # checks of a config may raise anything
        return None


def _shapes(model: nn.Module) -> Shapes:
    tensors = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    return {name: tuple(tensor.shape) for name, tensor in tensors}
