"""What tracing finds: groups of removable units as slices of tensors, and what was left out (no model inside)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

STREAM = "it writes a stream that is normalised as a whole"
"""What ends the reason why weights are left out whose channels cannot be told apart."""


@dataclass(frozen=True, eq=False)
class Slice:
    """One dimension of one tensor, and the indices that each unit owns there.

    Args:
        tensor: name of the parameter or buffer, e.g. `"encoder.layer.3.attention.self.query.weight"`.
        dim: the dimension.
        indices: the indices of each unit in rising order, shape (units, indices per unit).
    """

    tensor: str
    dim: int
    indices: Tensor

    def __post_init__(self) -> None:
        if self.indices.dim() != 2 or self.indices.unique().numel() != self.indices.numel():
            raise ValueError(
                f"{self.tensor}[{self.dim}]: indices of shape {tuple(self.indices.shape)} must be (units, indices per "
                "unit), and no index may belong to two units."
            )

    def __str__(self) -> str:
        return f"{self.tensor}[{self.dim}] x {self.indices.shape[1]}"


@dataclass(frozen=True, eq=False)
class FoundGroup:
    """Units that touch the same tensors, each in as many places.

    Multiplying what the `reads` take in by a mask does the same as cutting all slices.

    Args:
        module: path of the smallest module around all the tensors.
        writes: the slices that make the units' channels.
        reads: the slices of the weights that take these channels in, along the dimension that is summed over.
        shared: slices of tables that other layers' units have a part in as well (a position bias of a whole stack):
            they are cut only if the same units are cut there, and otherwise each layer picks its own from them.
        like: the module whose group this is known from, where the sample does not reach this one (an expert to which no
            token goes); `None` if it was traced.
    """

    module: str
    writes: tuple[Slice, ...]
    reads: tuple[Slice, ...]
    shared: tuple[Slice, ...] = ()
    like: str | None = None

    @property
    def units(self) -> int:
        """How many units there are."""
        return len(self.reads[0].indices)

    def __str__(self) -> str:
        sides = (", ".join(map(str, side)) for side in (self.writes, self.reads))
        shared = f", with {', '.join(map(str, self.shared))} of other layers too" if self.shared else ""
        like = f" (not reached, but like {self.like})" if self.like is not None else ""
        return f"{self.units} units in {self.module or 'the model'}: {' -> '.join(sides)}{shared}{like}"


@dataclass(frozen=True)
class LeftOut:
    """What was found, and is in no group.

    Args:
        tensors: tensors with their dimensions, e.g. `"norm.weight[0]"`.
        reason: why.
    """

    tensors: tuple[str, ...]
    reason: str

    def __str__(self) -> str:
        return f"{', '.join(self.tensors)}: {self.reason}"


@dataclass(frozen=True)
class Trace:
    """All that was found in a model.

    Args:
        groups: in the order in which the model runs what reads them.
        left_out: the rest, each with a reason.
        passes: how many forward passes it took.
        unread: tensors that no operation reads for this sample.
    """

    groups: tuple[FoundGroup, ...]
    left_out: tuple[LeftOut, ...]
    passes: int
    unread: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*map(str, self.groups), *(f"left out: {each}" for each in self.left_out)])
