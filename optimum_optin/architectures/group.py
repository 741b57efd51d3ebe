"""Groups of removable units: the vocabulary that every other file uses (no model inside).

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
    """The name of a layer's stack: `"layers"` for `"layers.3"`."""
    return layer.partition(".")[0]


def attribute(model: nn.Module, path: str) -> Any:
    """The value of the attribute at a path, e.g. `"layers.0.attention.head_dim"`."""
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
    """What is sliced when units of a sublayer are removed; paths of modules, parameters and attributes.

    Args:
        consumer: the linear that reads the units.
        producers: the linears that write them.
        core: the attention module, which is replaced when no unit is left; `None` where empty linears will do.
        counters: attributes that are set to what is left: path -> `"units"` or `"features"` (units * width).
        tables: learned tables with an entry per head: path of the parameter -> its dimension of heads; those that a
            model does not have are passed over.
        shared_bias: path of a module, then the name of its argument that carries the position bias of all heads, which
            is one for the whole stack (MPNet); an argument of the layer itself has no path before it.
    """

    consumer: str
    producers: tuple[Producer, ...]
    core: str | None = None
    counters: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    shared_bias: str | None = None

    def below(self, path: str) -> Cut:
        """The same cut with paths from the model, where this one has paths from the layer at `path`."""
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
    """How a sublayer stands to the residual stream, as a walk through the layers must know.

    Args:
        pre_norm: whether the layer normalises a sublayer's input, so that consumers write to the residual stream
            directly; otherwise it normalises their sum with the residual.
        windowed: whether its linears see the tokens in windows, in another order than the residual stream.
        stream: path of a module whose input is the residual stream before the sublayer; `None` where that can be told
            from what the sublayers before it write.
        scale: path of a vector, one number per channel, by which the consumer's output is multiplied before it joins
            the residual stream (layer scale); `None` where there is none.
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
        role: what the units are, e.g. `"heads"` or `"neurons"`.
        units: how many units there are now.
        width: consumer input columns per unit (a head's dimension; 1 for a neuron).
        cut: what is sliced when units are removed.
        residual: what a walk through the layers must know.
        config_fields: what a uniform layout must know: attributes of the model's config from which transformers' own
            class reads this size, each proportional to `units`; empty if that class cannot be built with fewer units.
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
    """All groups of a model in order of execution, with its layers and stacks: found once, and handed down.

    Iterates over the groups.

    Args:
        members: the groups.
        layers: every layer in order of execution, those without units included: name -> module path.
        inputs: every stack in order of execution: name -> the model input that the stack's tokens are made of.
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
