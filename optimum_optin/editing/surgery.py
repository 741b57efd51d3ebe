"""Rewriting: slice all tensors that units own a part of to the kept units, in place.

What comes out is an ordinary model of smaller modules. Works on the meta device too, which is how a
saved model is rebuilt before its weights are loaded.
"""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from functools import singledispatch
from typing import Any

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ..architectures.group import Blocks, Cut, Group, Masks
from ..running.multihead import run_plainly
from .stand_ins import empty, stand_in


def rewrite(model: nn.Module, groups: Iterable[Group], masks: Masks) -> None:
    """Remove the units that `masks` drop, in place; returns nothing.

    Args:
        model: the model to cut; its other weights stay the same tensors.
        groups: groups of this model as it is now.
        masks: group key -> mask, shape (units,); true or 1 = keep.

    Raises:
        ValueError: a group without a mask, or with one of another length; nothing is cut then.
    """
    groups = list(groups)
    for group in groups:
        given = len(masks[group.key]) if group.key in masks else "none"
        if given != group.units:
            raise ValueError(f"{group.key} needs a mask of {group.units} units, got {given}.")
        if group.parts > 1 and len({int(part.sum()) for part in masks[group.key].view(group.parts, -1)}) > 1:
            raise ValueError(f"{group.key} must keep equally many units of each of its {group.parts} parts.")
    for place, group in enumerate(groups):
        kept = masks[group.key].cpu().nonzero().flatten()
        if len(kept) < group.units:
            take_units(model, _moved(group, groups[:place], masks), kept)


def groups_after(groups: Iterable[Group], masks: Masks) -> list[Group]:
    """Groups of a model as they are after `rewrite`: with fewer units, which begin where they begin then.

    Args:
        groups: as they were before.
        masks: see `rewrite`.
    """
    groups = list(groups)
    return [replace(_moved(group, groups, masks), units=int(masks[group.key].sum())) for group in groups]


def _moved(group: Group, cut: Iterable[Group], masks: Masks) -> Group:
    """A group whose blocks begin earlier by what other groups have lost before them, in a dimension that they share."""
    lost: dict[tuple[str, int], list[tuple[int, int]]] = defaultdict(list)
    for other in cut:
        fewer = other.units - int(masks[other.key].sum())
        for part in (*other.cut.writes, *other.cut.reads):
            lost[part.tensor, part.dim].append((part.start, fewer * sum(part.widths)))

    def moved(part: Blocks) -> Blocks:
        before = sum(count for start, count in lost[part.tensor, part.dim] if start < part.start)
        return replace(part, start=part.start - before) if before else part

    writes, reads = (tuple(map(moved, side)) for side in (group.cut.writes, group.cut.reads))
    return replace(group, cut=replace(group.cut, writes=writes, reads=reads))


def take_units(model: nn.Module, group: Group, kept: Tensor) -> None:
    """Keep the given units of a group, in place; returns nothing.

    Args:
        model: the model to cut.
        group: of this model as it is now.
        kept: indices of the units to keep, in their new order; a unit that is named twice is there twice.
    """
    cut = group.cut
    slices = (*cut.writes, *cut.reads)
    for part in slices:
        _slice(model, part, group.units, kept)
    for path, amount in cut.counters.items():
        set_attribute(model, path, int(amount * len(kept)))
    if len(kept) == 0:
        for part in slices:
            empty(model.get_submodule(part.tensor.rpartition(".")[0]))
    if cut.skips and len(kept) == 0:
        _leave_out(model, cut)
    elif cut.shared_bias:
        reader, _, argument = cut.shared_bias.rpartition(".")
        _select_heads(model.get_submodule(reader), argument, group.units, kept)


class HeadSelector:
    """Pre-forward hook that slices a position bias shared by a stack to the kept heads.

    Args:
        argument: the bias's name among the module's arguments; shape (batch, heads, queries, keys), or (heads, 1, keys)
            or (batch * heads, 1, keys), as alibi has.
        position: the bias's index among the positional arguments.
        kept: the heads that stay.
        heads: how many there were; `None` if that was not noted, and then the bias has four dimensions.
    """

    def __init__(self, argument: str, position: int, kept: list[int], heads: int | None = None):
        self.argument = argument
        self.position = position
        self.kept = kept
        self.heads = heads

    def __call__(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        if self.position < len(args):
            bias = self._select(args[self.position])
            return (*args[: self.position], bias, *args[self.position + 1 :]), kwargs
        return args, {**kwargs, self.argument: self._select(kwargs.get(self.argument))}

    def _select(self, bias: Tensor | None) -> Tensor | None:
        if bias is not None and bias.dim() == 3 and self.heads is not None:
            return bias.unflatten(0, (-1, self.heads))[:, self.kept].flatten(0, 1)
        # Without a bias, an attention mask is the same for all heads.
        return bias if bias is None or bias.shape[1] == 1 else bias[:, self.kept]


def set_attribute(model: nn.Module, path: str, value: Any) -> None:
    """Set the attribute at a path, in place; what it belongs to, if it is no module, becomes the module's own copy."""
    path, _, name = path.rpartition(".")
    owner: Any = model
    for place in path.split(".") if path else ():
        inner = getattr(owner, place)
        if not isinstance(inner, nn.Module):  # a config, which other modules read as well
            inner = copy.copy(inner)
            setattr(owner, place, inner)
        owner = inner
    setattr(owner, name, value)


def _slice(model: nn.Module, part: Blocks, units: int, kept: Tensor) -> None:
    path, _, name = part.tensor.rpartition(".")
    module = model.get_submodule(path)
    tensor = getattr(module, name)
    sliced = part.taken(tensor.detach(), units, kept)
    if name in module._parameters:
        sliced = nn.Parameter(sliced, requires_grad=tensor.requires_grad)
    setattr(module, name, sliced)
    follow_shapes(module)


def _leave_out(model: nn.Module, cut: Cut) -> None:
    for skip in cut.skips:
        stand_in(model, skip)
    for path in cut.parts:
        # The module that makes a bias of a table cannot reshape an empty one; `None` says that there is no bias.
        set_attribute(model, path, None)


def _select_heads(reader: nn.Module, argument: str, heads: int, kept: Tensor) -> None:
    for key, hook in reader._forward_pre_hooks.items():
        if isinstance(hook, HeadSelector):  # pruned before: `kept` picks among the heads it selects
            left = [hook.kept[index] for index in kept]
            reader._forward_pre_hooks[key] = HeadSelector(hook.argument, hook.position, left, hook.heads)
            return
    position = list(inspect.signature(reader.forward).parameters).index(argument)
    reader.register_forward_pre_hook(HeadSelector(argument, position, kept.tolist(), heads), with_kwargs=True)


def check_sliceable(model: nn.Module, groups: Iterable[Group]) -> None:
    """Raise if something that `rewrite` would slice is not a plain tensor of its group's own.

    Raises:
        ValueError: a module is of a kind that we cannot slice (an adapter's), has a weight that is computed from
            others, or is shared by two layers; names the module.
    """
    seen: dict[nn.Module, str] = {}
    for group in groups:
        for part in (*group.cut.writes, *group.cut.reads):
            path, _, name = part.tensor.rpartition(".")
            module = model.get_submodule(path)
            _check_plain(module, path, name)
            if seen.setdefault(module, path) != path:
                raise ValueError(
                    f"{path} and {seen[module]} are one module, which we cannot cut for both: copy it first."
                )


def _check_plain(module: nn.Module, path: str, name: str) -> None:
    kind = f"{type(module).__module__}.{type(module).__name__}"
    linear, own = isinstance(module, nn.Linear), name in module._parameters or name in module._buffers
    if (
        linear
        and not kind.startswith(("torch.nn.", "transformers.models."))  # a model's own (Falcon's): the proof runs it
        and type(module).forward is not nn.Linear.forward
    ):
        raise ValueError(
            f"{path} is a {kind}, a linear with a forward of its own, which we cannot slice: merge adapters first "
            "(merge_and_unload), or turn it into a plain nn.Linear."
        )
    if not own and linear:
        raise ValueError(
            f"the weight of {path} ({kind}) is computed from others: remove parametrizations, norms and masks "
            "first (torch.nn.utils.parametrize.remove_parametrizations, torch.nn.utils.prune.remove)."
        )
    if not own:
        raise ValueError(
            f"{path} is a {kind}, which we cannot slice: merge adapters first (merge_and_unload), or keep the "
            f"weights in a {name} of the module's own."
        )


@singledispatch
def follow_shapes(module: nn.Module) -> None:
    """Set what a module says of the shapes of its tensors to what they are, in place; register a case for a class."""


@follow_shapes.register
def _(module: nn.Linear) -> None:
    module.out_features, module.in_features = module.weight.shape


@follow_shapes.register
def _(module: Conv1D) -> None:
    module.nx, module.nf = module.weight.shape


@follow_shapes.register(nn.Conv1d)
@follow_shapes.register(nn.Conv2d)
@follow_shapes.register(nn.Conv3d)
def _(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> None:
    outputs, inputs = module.weight.shape[:2]
    if module.groups > 1:  # groups go with the channels that they write
        module.groups = module.groups * outputs // module.out_channels
    module.out_channels, module.in_channels = outputs, inputs * module.groups


@follow_shapes.register(nn.BatchNorm1d)
@follow_shapes.register(nn.BatchNorm2d)
@follow_shapes.register(nn.BatchNorm3d)
@follow_shapes.register(nn.SyncBatchNorm)
def _(module: nn.Module) -> None:
    module.num_features = len(module.weight if module.running_mean is None else module.running_mean)


@follow_shapes.register(nn.LayerNorm)
@follow_shapes.register(nn.RMSNorm)
def _(module: nn.LayerNorm | nn.RMSNorm) -> None:
    if module.weight.dim() == len(module.normalized_shape):  # others (Chameleon) have weights for every head
        module.normalized_shape = tuple(module.weight.shape)


@follow_shapes.register
def _(module: nn.GroupNorm) -> None:
    module.num_channels = len(module.weight)


@follow_shapes.register
def _(module: nn.MultiheadAttention) -> None:
    run_plainly(module)


@follow_shapes.register
def _(module: nn.Embedding) -> None:
    module.num_embeddings, module.embedding_dim = module.weight.shape


@follow_shapes.register
def _(module: nn.PReLU) -> None:
    module.num_parameters = len(module.weight)
