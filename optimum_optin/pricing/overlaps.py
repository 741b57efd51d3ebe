"""Overlaps: weights one side of which belongs to one group and another to the next, so that costs are no sums.

Of two convolutions in a row, the channels between them are rows of the one and columns of the other. Where the channels
before and after a convolution both go, its MACs are the product of what is left of them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from ..architectures.group import Groups, Masks, attribute
from ..running.batch import Batch
from .unit_costs import macs_of_modules


@dataclass(frozen=True)
class _Owned:
    """What a group owns of a dimension.

    Args:
        key: the group.
        units: how many units it has.
        share: which part of the dimension one unit owns.
    """

    key: str
    units: int
    share: float


@dataclass(frozen=True)
class Weight:
    """A weight of which groups own one or more dimensions.

    Args:
        amount: what counts of the whole of it: what is multiplied by it in a pass, or how many numbers it has.
        dims: what groups own of each dimension.
    """

    amount: float
    dims: tuple[tuple[_Owned, ...], ...]

    def left(self, masks: Masks) -> float:
        """The amount that is left under masks; groups without one stay whole."""
        amount = self.amount
        for owned in self.dims:
            gone = (each.share * (each.units - int(masks[each.key].sum())) for each in owned if each.key in masks)
            amount *= 1 - sum(gone)
        return amount

    def of_unit(self, key: str) -> float:
        """The amount that goes with one unit of a group from the dense model."""
        return self.amount * sum(each.share for owned in self.dims for each in owned if each.key == key)


def owned_weights(model: nn.Module, groups: Groups, amounts: Mapping[str, float]) -> list[Weight]:
    """Those of the tensors with an amount that groups own a dimension of.

    Args:
        model: the model as it is now.
        groups: its groups.
        amounts: name of a tensor -> see `Weight`.
    """
    units = {group.key: group.units for group in groups}
    weights = []
    for tensor, dims in _dims(groups).items():
        if tensor in amounts:
            shape = attribute(model, tensor).shape  # a frozen batch norm has buffers
            owned = tuple(
                tuple(_Owned(key, units[key], width / shape[dim]) for key, width in widths.items())
                for dim, widths in dims.items()
            )
            weights.append(Weight(amounts[tensor], owned))
    return weights


def overlapping(groups: Groups) -> set[str]:
    """Keys of the groups that own a dimension of a weight of which another group owns another dimension."""
    return {key for owners in _owners(groups).values() if len(owners) > 1 for keys in owners.values() for key in keys}


def apart(groups: Groups) -> Groups:
    """The other groups, what a unit of which costs depends on no other group."""
    keys = overlapping(groups)
    return replace(groups, members=tuple(group for group in groups if group.key not in keys))


def joined(groups: Groups) -> Groups:
    """The groups that are not `apart`."""
    keys = overlapping(groups)
    return replace(groups, members=tuple(group for group in groups if group.key in keys))


def overlapping_weights(model: nn.Module, groups: Groups, batch: Batch) -> list[Weight]:
    """The weights of overlapping groups, with their MACs.

    Args:
        model: the model as it is now.
        groups: its groups.
        batch: inputs to count with.

    Raises:
        ValueError: a unit costs nothing; names its group.
    """
    keys = overlapping(groups)
    tensors = [tensor for tensor, dims in _owners(groups).items() if any(keys & {*each} for each in dims.values())]
    macs = macs_of_modules(model, batch) if tensors else {}
    weights = owned_weights(model, groups, {tensor: macs.get(tensor.rpartition(".")[0], 0) for tensor in tensors})
    for key in sorted(keys):
        if not any(weight.of_unit(key) for weight in weights):
            raise ValueError(f"{key} costs nothing: no module that holds its weights multiplies anything by them.")
    return weights


def _owners(groups: Groups) -> Mapping[str, Mapping[int, Mapping[str, float]]]:
    """`_dims` of the weights of linears and convolutions."""
    return {tensor: dims for tensor, dims in _dims(groups).items() if tensor.endswith(".weight")}


def _dims(groups: Groups) -> Mapping[str, Mapping[int, Mapping[str, float]]]:
    """Tensor -> dimension -> group key -> how many indices one unit owns there."""
    found: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(float)))
    for group in groups:
        for part in (*group.cut.writes, *group.cut.reads):
            apart = 1 if part.apart is None else group.parts  # a unit owns them in its own part alone
            found[part.tensor][part.dim][group.key] += sum(part.widths) / apart
    return found
