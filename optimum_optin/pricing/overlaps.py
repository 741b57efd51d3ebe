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
        macs: what is multiplied by it in a pass of the dense model.
        dims: what groups own of each dimension.
    """

    macs: float
    dims: tuple[tuple[_Owned, ...], ...]

    def left(self, masks: Masks) -> float:
        """MACs that are left under masks; groups without one stay whole."""
        macs = self.macs
        for owned in self.dims:
            gone = (each.share * (each.units - int(masks[each.key].sum())) for each in owned if each.key in masks)
            macs *= 1 - sum(gone)
        return macs

    def of_unit(self, key: str) -> float:
        """MACs that go with one unit of a group from the dense model."""
        return self.macs * sum(each.share for owned in self.dims for each in owned if each.key == key)


def overlapping(groups: Groups) -> set[str]:
    """Keys of the groups that own a dimension of a weight of which another group owns another dimension."""
    return {key for owners in _dims(groups).values() if len(owners) > 1 for keys in owners.values() for key in keys}


def apart(groups: Groups) -> Groups:
    """The other groups, what a unit of which costs depends on no other group."""
    keys = overlapping(groups)
    return replace(groups, members=tuple(group for group in groups if group.key not in keys))


def overlapping_weights(model: nn.Module, groups: Groups, batch: Batch) -> list[Weight]:
    """The weights of overlapping groups.

    Args:
        model: the model as it is now.
        groups: its groups.
        batch: inputs to count with.

    Raises:
        ValueError: a unit costs nothing; names its group.
    """
    keys = overlapping(groups)
    owners = {tensor: dims for tensor, dims in _dims(groups).items() if any(keys & {*each} for each in dims.values())}
    macs = macs_of_modules(model, batch) if owners else {}
    units = {group.key: group.units for group in groups}
    weights = []
    for tensor, dims in owners.items():
        shape = attribute(model, tensor).shape  # a frozen batch norm has buffers
        owned = tuple(
            tuple(_Owned(key, units[key], width / shape[dim]) for key, width in widths.items())
            for dim, widths in dims.items()
        )
        weights.append(Weight(macs.get(tensor.rpartition(".")[0], 0), owned))
    for key in sorted(keys):
        if not any(weight.of_unit(key) for weight in weights):
            raise ValueError(f"{key} costs nothing: no module that holds its weights multiplies anything by them.")
    return weights


def _dims(groups: Groups) -> Mapping[str, Mapping[int, Mapping[str, int]]]:
    """Weight -> dimension -> group key -> how many indices one unit owns there."""
    found: dict[str, dict[int, dict[str, int]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(int)))
    for group in groups:
        for part in (*group.cut.writes, *group.cut.reads):
            if part.tensor.endswith(".weight"):
                found[part.tensor][part.dim][group.key] += sum(part.widths)
    return found
