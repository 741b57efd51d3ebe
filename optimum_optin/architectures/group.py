"""Groups of removable units, and the words that every other file uses (no model inside).

A unit is the smallest removable thing (an attention head, an FFN neuron). A group holds one
sublayer's units; they share a consumer, the linear that reads them, and producers, the linears that
write them. Multiplying the consumer's input by a mask equals slicing consumer and producers: scoring,
evaluation and rewriting all rest on that one fact.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
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
class Group:
    """One sublayer's units.

    Args:
        layer: the layer's name, e.g. `"layers.3"`: stack and index, independent of module names.
        role: `"heads"` or `"neurons"`.
        units: how many units there are now.
        width: consumer input columns per unit (a head's dimension; 1 for a neuron).
        consumer: path of the linear that reads the units.
        producers: the linears that write them.
        core: path of the module to replace when every unit goes, `None` where empty linears will do.
        counters: attributes to update, path -> features per unit (1 counts units).
        tables: learned tables with an entry per head, to be sliced: path of the parameter -> its dimension of heads.
        shared_bias: path of a module and the name of its argument that carries one position bias per head for the
            whole stack, to be sliced to the kept heads (MPNet).
        pre_norm: whether the layer normalises a sublayer's input, so that consumers write to the
            residual stream directly; otherwise it normalises their sum with the residual.
        windowed: whether its linears see the tokens in windows, in another order than the residual stream.
        stream: path of a module whose input is the residual stream before the sublayer; `None` where that can be told
            from what the sublayers before it write.
        scale: path of the numbers, one for each channel, that the consumer's output is multiplied by before it joins
            the residual stream (layer scale); `None` where there are none.
        normed_output: whether what the consumer writes is normalised before it joins the residual stream, so that it is
            all that a refit can aim at (SwinV2).
        config_fields: attributes of the model's config that transformers' own class reads this size from, each
            proportional to `units`; none if it cannot be built with fewer units.
    """

    layer: str
    role: str
    units: int
    width: int
    consumer: str
    producers: tuple[Producer, ...]
    core: str | None = None
    counters: Mapping[str, int] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    shared_bias: str | None = None
    pre_norm: bool = False
    windowed: bool = False
    stream: str | None = None
    scale: str | None = None
    normed_output: bool = False
    config_fields: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """`"layers.3.heads"`: the group's name in masks, scores, costs and on disk."""
        return f"{self.layer}.{self.role}"
