"""What a unit costs, measured: the MACs that one unit more adds to a copy, by PyTorch's flop counter."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping
from contextlib import AbstractContextManager, ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from ..architectures.group import Group, Groups
from ..editing.surgery import take_units
from ..media.vision import image_tokens, usual_image
from ..merging.hooks import check_mergeable, detach_merging
from ..merging.stack import token_layers
from ..models.identity import attention_of
from ..running.batch import Batch
from ..running.experts import is_packed
from ..running.facts import measured_once
from ..running.forward import call_model
from ..running.freezing import frozen
from .kinds import Kind, kinds_of
from .skeletons import by_shapes


def unit_macs(model: nn.Module, groups: Groups, batch: Batch, repeats: int = 1) -> dict[str, float]:
    """MACs that a unit of each group adds to its layer in a forward pass; no tokens are merged.

    One unit is added, not removed: the last unit of a layer would take along what all of them share. Counting runs a
    copy whose tensors hold nothing, so that no weight is copied or multiplied. Only if the model's forward looks at
    what tensors hold, the copy has weights.

    Args:
        model: the model as it is now.
        groups: its groups; a layer has at most one of each role.
        batch: inputs to count with.
        repeats: how often to repeat the first layer's tokens; above 1, the model must pass `check_mergeable`.

    Returns:
        Group key -> MACs.

    Raises:
        ValueError: a unit costs nothing; names its group.
    """

    def measure() -> dict[str, float]:
        return by_shapes(model, batch, partial(_added_by_units, groups=groups, repeats=repeats))

    shapes = tuple((name, tuple(value.shape)) for name, value in batch.items())
    macs = measured_once(model, ("MACs of units", tuple(group.key for group in groups), shapes, repeats), measure)
    for group in groups:
        if macs[group.key] <= 0:
            raise ValueError(
                f"{group.key} costs nothing: with one unit more, {group.layer} does {macs[group.key]:g} MACs more, so "
                "no budget would bound them. Register producers and a consumer that run in that layer."
            )
    return macs


def macs_of_modules(model: nn.Module, batch: Batch) -> Mapping[str, float]:
    """Path of a module -> MACs that it does in a forward pass, those of the modules in it included.

    Args:
        model: the model as it is now.
        batch: inputs to count with.
    """

    def measure() -> dict[str, float]:
        return by_shapes(model, batch, _by_module)

    shapes = tuple((name, tuple(value.shape)) for name, value in batch.items())
    return measured_once(model, ("MACs of modules", shapes), measure)


def macs_by_length(model: nn.Module, groups: Groups) -> dict[str, tuple[float, float]]:
    """Group key -> a and b of the MACs, a n + b n^2, that a unit adds to a layer of n tokens, of those that can merge.

    Raises:
        ValueError: see `check_mergeable`; in other models, costs depend on more than the number of tokens (windows).
    """
    check_mergeable(model)
    layers = token_layers(model, groups)
    groups = replace(groups, members=tuple(group for group in groups if group.layer in layers), layers=layers)
    image = usual_image(model)
    tokens = image_tokens(model, image)
    once, twice = (unit_macs(model, groups, image, repeats) for repeats in (1, 2))
    squared = {key: (twice[key] - 2 * once[key]) / (2 * tokens**2) for key in once}
    return {key: (once[key] / tokens - squared[key] * tokens, squared[key]) for key in once}


@torch.no_grad()
def run_counted(model: nn.Module, batch: Batch) -> FlopCounterMode:
    """PyTorch's flop counter after one forward pass."""
    counter = FlopCounterMode(display=False, custom_mapping=_uncounted())
    counter.mod_tracker = _Running(model)
    with frozen(model), counter, suppress(_Stopped):
        call_model(model, batch)
    return counter


class _Running:
    """Tells PyTorch's counter which modules of a model are running.

    Its own tracker hooks every module of the process, so that what other threads run is taken for a part of the model,
    and may fail there.

    Args:
        model: the model.

    Attributes:
        parents: names of the modules that run now.
    """

    def __init__(self, model: nn.Module) -> None:
        self.parents = {"Global"}
        self._hooks = ExitStack()
        self._names: dict[nn.Module, set[str]] = {}
        for path, module in model.named_modules(prefix=type(model).__name__, remove_duplicate=False):
            self._names.setdefault(module, set()).add(path)

    def __enter__(self) -> None:
        for module in self._names:
            self._hooks.callback(module.register_forward_pre_hook(self._begin, prepend=True).remove)
            self._hooks.callback(module.register_forward_hook(self._end, prepend=True).remove)

    def __exit__(self, *error: Any) -> None:
        self._hooks.close()

    def _begin(self, module: nn.Module, args: tuple) -> None:
        self.parents |= self._names[module]

    def _end(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.parents -= self._names[module]


class _Stopped(Exception):
    """Ends a forward pass early."""


def _stop(module: nn.Module, args: tuple, output: Any) -> None:
    raise _Stopped


def _by_module(copied: nn.Module, batch: Batch, running: AbstractContextManager) -> dict[str, float]:
    """Path of a module -> MACs that it does in a pass."""
    with running:
        counts = run_counted(copied, batch).get_flop_counts().items()
    return {path.partition(".")[2]: sum(operations.values()) / 2 for path, operations in counts}


def _added_by_units(
    copied: nn.Module, batch: Batch, running: AbstractContextManager, groups: Groups, repeats: int
) -> dict[str, float]:
    """Group key -> MACs that its layer does more with the first unit of each part there twice, by unit. One role after
    the other grows, and of each kind the first group."""
    detach_merging(copied)
    if attention_of(copied) not in ("sdpa", "eager", None):
        copied.set_attn_implementation("eager")  # the counter does not know all kernels
    if any(map(is_packed, copied.modules())):  # a product for each token, so that shapes alone are enough
        copied.set_experts_implementation("batched_mm" if isinstance(running, FakeTensorMode) else "eager")
    if repeats > 1:
        first, *_, last = map(copied.get_submodule, groups.layers.values())
        first.register_forward_pre_hook(lambda module, args: (args[0].repeat(1, repeats, 1), *args[1:]))
        last.register_forward_hook(_stop)  # a head that makes maps of tokens has no image of so many
    if not len(groups):
        return {}
    macs, returned = _until(copied, batch, running, groups.layers)
    kinds = _kinds_of(copied, groups, macs)
    places = {layer: place for place, layer in enumerate(returned, 1)}
    most = max(places.get(first.layer, math.inf) for first, *_ in kinds)  # the pass may end in the last layer
    added: dict[str, float] = {}
    for role in dict.fromkeys(group.role for group in groups):
        grown = [kind for kind in kinds if kind[0].role == role]
        for group, *_ in grown:
            in_parts = torch.arange(group.units).view(group.parts, -1)
            take_units(copied, group, torch.cat([in_parts, in_parts[:, :1]], 1).flatten())
        before, (macs, _) = macs, _until(copied, batch, running, groups.layers, most)
        for kind in grown:
            path = groups.layers[kind[0].layer]
            each = (macs.get(path, 0) - before.get(path, 0)) / kind[0].parts
            added |= {group.key: each for group in kind}
    return added


def _until(
    copied: nn.Module, batch: Batch, running: AbstractContextManager, layers: Mapping[str, str], most: float = math.inf
) -> tuple[dict[str, float], list[str]]:
    """See `_by_module`, and layers in the order in which they return; the pass ends after so many of these."""
    returned: list[str] = []

    def note(layer: str, module: nn.Module, args: tuple, output: Any) -> None:
        returned.append(layer)
        if len(returned) == most:
            raise _Stopped

    with ExitStack() as hooks:
        for layer, path in layers.items():
            hooks.callback(copied.get_submodule(path).register_forward_hook(partial(note, layer)).remove)
        return _by_module(copied, batch, running), returned


def _kinds_of(model: nn.Module, groups: Groups, macs: Mapping[str, float]) -> list[Kind]:
    """The groups whose units cost the same: they are of a kind, and their layers do the same, module by module.

    What a unit costs is made of the sizes of tensors and of the rows that they are multiplied by.
    """
    found: dict[Hashable, list[Group]] = defaultdict(list)
    for kind in kinds_of(model, groups):
        for group in kind:
            path = groups.layers[group.layer]
            prefix = path and f"{path}."
            done = {name[len(path) :]: count for name, count in macs.items() if f"{name}.".startswith(prefix)}
            found[kind[0].key, frozenset(done.items())].append(group)
    return list(found.values())


def _count_product_by_group(rows, weight, *args, out_shape=None, **kwargs) -> int:
    return 2 * math.prod(rows) * weight[-1]


def _count_cpu_attention(query, key, value, *args, out_shape=None, **kwargs) -> int:
    return sdpa_flop_count(query, key, value)


def _uncounted() -> Mapping:
    """What PyTorch 2.13 does not count: the CPU's fused attention, and products of experts, each with some of the rows.

    transformers registers one of its own, for where PyTorch's does not run.
    """
    counted = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _count_cpu_attention,
        torch.ops.aten._grouped_mm: _count_product_by_group,
    }
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        counted[torch.ops.transformers.grouped_mm_fallback] = _count_product_by_group
    return counted
