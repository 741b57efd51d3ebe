"""Groups of removable units, and the words that every other file uses (no model inside).

A unit is the smallest removable thing (an attention head, an FFN neuron). A group holds one
sublayer's units; they share a consumer, the linear that reads them, and producers, the linears that
write them. Multiplying the consumer's input by a mask equals slicing consumer and producers: scoring,
evaluation and rewriting all rest on that one fact.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, nn

HEADS = "heads"


NEURONS = "neurons"


Masks = Mapping[str, Tensor]
"""Group key -> what is kept, shape (units,), 1 or True = keep."""


def stack_of(layer: str) -> str:
    """The stack's name in a layer's: `"layers"` of `"layers.3"`."""
    return layer.partition(".")[0]


def attribute(model: nn.Module, path: str) -> Any:
    """What a module's attribute holds, e.g. `"layers.0.attention.head_dim"`."""
    module, _, name = path.rpartition(".")
    return getattr(model.get_submodule(module), name)


@dataclass(frozen=True)
class Producer:
    """A linear whose outputs are the units.

    Args:
        path: module path, e.g. `"attention.self.query"`.
        parts: how many equal blocks of units the rows hold, e.g. 3 for a packed q/k/v projection.
    """

    path: str
    parts: int = 1


@dataclass(frozen=True)
class Cut:
    """What is sliced with a sublayer's units, by path.

    Args:
        consumer: the linear that reads the units.
        producers: the linears that write them.
        core: the attention module, to be replaced when every unit goes; `None` where empty linears will do.
        counters: attributes to keep true, path -> `"units"` or `"features"` (units * width).
        tables: learned tables with an entry per head, to be sliced: path of the parameter -> its dimension of heads;
            those that a model does not have are passed over.
        shared_bias: path of a module and the name of its argument that carries one position bias per head for the
            whole stack, to be sliced to the kept heads (MPNet); an argument of the layer itself has no path before it.
    """

    consumer: str
    producers: tuple[Producer, ...]
    core: str | None = None
    counters: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    shared_bias: str | None = None

    def below(self, path: str) -> Cut:
        """The same with paths from the model, of one with paths from the layer at `path`."""
        return Cut(
            f"{path}.{self.consumer}",
            tuple(Producer(f"{path}.{producer.path}", producer.parts) for producer in self.producers),
            self.core and f"{path}.{self.core}",
            {f"{path}.{name}": kind for name, kind in self.counters.items()},
            {f"{path}.{name}": dim for name, dim in self.tables.items()},
            self.shared_bias and f"{path}.{self.shared_bias}",
        )


@dataclass(frozen=True)
class Residual:
    """How a sublayer stands to the residual stream: what a walk through the layers must know.

    Args:
        pre_norm: whether the layer normalises a sublayer's input, so that consumers write to the residual stream
            directly; otherwise it normalises their sum with the residual.
        windowed: whether its linears see the tokens in windows, in another order than the residual stream.
        stream: path of a module whose input is the residual stream before the sublayer; `None` where that can be told
            from what the sublayers before it write.
        scale: path of the numbers, one for each channel, that the consumer's output is multiplied by before it joins
            the residual stream (layer scale); `None` where there are none.
        normed_output: whether what the consumer writes is normalised before it joins the residual stream, so that it is
            all that a refit can aim at (SwinV2).
    """

    pre_norm: bool = False
    windowed: bool = False
    stream: str | None = None
    scale: str | None = None
    normed_output: bool = False

    def below(self, path: str) -> Residual:
        """See `Cut.below`."""
        return replace(
            self, stream=self.stream and f"{path}.{self.stream}", scale=self.scale and f"{path}.{self.scale}"
        )


@dataclass(frozen=True)
class Group:
    """One sublayer's units.

    Args:
        layer: the layer's name, e.g. `"layers.3"`: stack and index, independent of module names.
        role: what the units are: `"heads"`, `"neurons"`.
        units: how many units there are now.
        width: consumer input columns per unit (a head's dimension; 1 for a neuron).
        cut: what is sliced with them.
        residual: what a walk must know.
        config_fields: what a uniform layout must know: attributes of the model's config that transformers' own class
            reads this size from, each proportional to `units`; none if it cannot be built with fewer units.
    """

    layer: str
    role: str
    units: int
    width: int
    cut: Cut
    residual: Residual = Residual()
    config_fields: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`"layers.3.heads"`: the group's name in masks, scores, costs and on disk."""
        return f"{self.layer}.{self.role}"

    @property
    def consumer(self) -> str:
        """Path of the linear that reads the units."""
        return self.cut.consumer

    @property
    def producers(self) -> tuple[Producer, ...]:
        """The linears that write the units."""
        return self.cut.producers


@dataclass(frozen=True)
class Groups:
    """All groups of a model in order of execution, and where they are: found once, and handed down.

    Iterates over the groups.

    Args:
        members: the groups.
        layers: every layer in order of execution, those without units included: name -> module path.
        inputs: every stack in order of execution: name -> the model's input that its tokens are made of.
    """

    members: tuple[Group, ...]
    layers: Mapping[str, str]
    inputs: Mapping[str, str]

    def __iter__(self) -> Iterator[Group]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Group:
        return self.members[index]

    def of_role(self, role: str) -> Groups:
        """The groups of one role alone."""
        return replace(self, members=tuple(group for group in self.members if group.role == role))
