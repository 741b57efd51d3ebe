"""Groups of removable units: the vocabulary that every other file uses (no model inside).

A unit is the smallest removable thing (an attention head, an FFN neuron). A group holds one
sublayer's units; they share a consumer, the linear that reads them, and producers, the linears that
write them. Multiplying the consumer's input by a mask equals slicing all tensors that units own a part of: scoring,
evaluation and rewriting all rest on that one fact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

HEADS = "heads"


QUERY_HEADS = "query_heads"


NEURONS = "neurons"


EXPERT_NEURONS = "expert_neurons"


CHANNELS = "channels"


Masks = Mapping[str, Tensor]
"""Group key -> what is kept, shape (units,), 1 or True = keep."""


def stack_of(layer: str) -> str:
    """The name of a layer's stack: `"layers"` for `"layers.3"`."""
    return layer.partition(".")[0]


def attribute(model: nn.Module, path: str) -> Any:
    """The value of the attribute at a path, e.g. `"layers.0.attention.head_dim"`, or one of a module's config."""
    return attrgetter(path)(model)


@dataclass(frozen=True)
class Producer:
    """A linear or convolution whose outputs are the units.

    Args:
        path: module path, e.g. `"attention.self.query"`.
        parts: in how many equal blocks its rows hold the units, e.g. 3 for a packed q/k/v projection.
        norm: path of the batch norm that reads what it writes, as it is; `None` if there is none.
    """

    path: str
    parts: int = 1
    norm: str | None = None


@dataclass(frozen=True)
class Consumer:
    """A linear or convolution among whose inputs are the units of a group, one after the other.

    Its other inputs may be units of other groups, or none, such as where a concatenation is read.

    Args:
        path: module path, e.g. `"attention.output.dense"`.
        width: input columns, or channels, per unit.
        norm: path of the batch norm that reads what it writes, as it is; `None` if there is none.
    """

    path: str
    width: int = 1
    norm: str | None = None


@dataclass(frozen=True)
class Blocks:
    """The indices that units own along one dimension of a tensor, in blocks that follow each other.

    In a block, units follow each other, too: a packed q/k/v projection has three blocks of a head's width. What lies
    outside of the blocks belongs to no unit, and stays.

    Args:
        tensor: name of the parameter or buffer.
        dim: the dimension.
        widths: for each block, how many indices a unit owns there.
        start: where the first block begins.
        apart: the dimension along which the parts of the units lie (`Group.parts`), each with blocks of its own: the
            experts of packed weights. `None` if a unit owns the same indices all over the tensor.
    """

    tensor: str
    dim: int
    widths: tuple[int, ...]
    start: int = 0
    apart: int | None = None

    def taken(self, tensor: Tensor, units: int, chosen: Tensor) -> Tensor:
        """What is left of a tensor with some units, and all that belongs to none.

        Args:
            tensor: the tensor.
            units: how many units there are.
            chosen: see `indices`; of units in parts, equally many of each.
        """
        chosen = chosen.to(tensor.device)
        if self.apart is None:
            return tensor.index_select(self.dim, self.indices(units, chosen, tensor.shape[self.dim]))
        parts = tensor.shape[self.apart]
        inside = chosen.view(parts, -1) - torch.arange(parts, device=chosen.device)[:, None] * (units // parts)
        index = torch.stack([self.indices(units // parts, own, tensor.shape[self.dim]) for own in inside])
        shape = [1] * tensor.dim()
        shape[self.apart], shape[self.dim] = index.shape
        index = (index if self.apart < self.dim else index.T).reshape(shape)
        return tensor.gather(self.dim, index.expand(*_sizes(tensor, self.dim, index.shape[self.dim])))

    def factors(self, tensor: Tensor, mask: Tensor) -> Tensor:
        """A mask of the units, shape (units,), as what the tensor is multiplied by; shapes can be broadcast."""
        parts = 1 if self.apart is None else tensor.shape[self.apart]
        mask = mask.view(parts, -1)
        factors = torch.ones(parts, tensor.shape[self.dim], dtype=mask.dtype, device=mask.device)
        place = self.start
        for width in self.widths:
            end = place + mask.shape[1] * width
            factors = torch.cat([factors[:, :place], mask.repeat_interleave(width, 1), factors[:, end:]], 1)
            place = end
        shape = [1] * tensor.dim()
        shape[self.dim] = tensor.shape[self.dim]
        if self.apart is not None:
            shape[self.apart] = parts
            factors = factors if self.apart < self.dim else factors.T
        return factors.reshape(shape)

    def indices(self, units: int, chosen: Tensor, size: int) -> Tensor:
        """The indices of some units, and those of none.

        Args:
            units: how many units there are.
            chosen: units, in the order that they are to have, shape (chosen,).
            size: the tensor's size along the dimension.
        """
        found, start = [torch.arange(self.start, device=chosen.device)], self.start
        for width in self.widths:
            inside = torch.arange(width, device=chosen.device)
            found.append((start + chosen[:, None] * width + inside).flatten())
            start += units * width
        return torch.cat([*found, torch.arange(start, size, device=chosen.device)])


def _sizes(tensor: Tensor, dim: int, size: int) -> list[int]:
    """The shape of a tensor with another size of one dimension."""
    return [size if place == dim else each for place, each in enumerate(tensor.shape)]


@dataclass(frozen=True)
class Skip:
    """A module that need not run once a group has lost all its units; a stand-in returns what it would have returned.

    What it returns first then is the same for every token: the bias of the linear inside that read the units, or zeros.

    Args:
        path: of the module.
        argument: the argument that it is given the tokens by, shape (..., tokens, channels).
        position: the place of this argument among those given by position.
        returns: of how many things a tuple is that it returns, a tensor for every token first, and then `None`; 0 for
            the tensor alone.
        reader: path of the linear in it whose bias is left; `None` for zeros.
        width: of the zeros; 0 where nothing but a linear without inputs reads them.
        cache: the argument by which it is given a cache of keys, in which it counts the tokens; `None` if it has none.
        cache_layer: which of the cache's layers is its own.
    """

    path: str
    argument: str = "hidden_states"
    position: int = 0
    returns: int = 0
    reader: str | None = None
    width: int = 0
    cache: str | None = None
    cache_layer: int = 0


@dataclass(frozen=True)
class Cut:
    """What is sliced when units are removed; names and paths from the model.

    Args:
        consumers: the linears and convolutions that read the units, in order of execution; none where something else
            reads them as well, so that masks have to be put on weights.
        producers: the linears and convolutions that write them.
        writes: what the units own of the tensors that write them.
        reads: what they own of those that read them. To multiply what is read by a mask is to cut all of these.
        counters: attributes that count units, and must follow: path -> how much one unit counts, a part of one where
            they count the units of a part (`Group.parts`).
        skips: modules that need not run when no unit is left; without any, empty linears run.
        shared_bias: path of a module, then the name of its argument that carries the position bias of all heads, which
            is one for the whole stack (MPNet).
        parts: modules that a bias of the units comes from, and that go with the last unit.
    """

    consumers: tuple[Consumer, ...]
    producers: tuple[Producer, ...]
    writes: tuple[Blocks, ...] = ()
    reads: tuple[Blocks, ...] = ()
    counters: Mapping[str, int | Fraction] = field(default_factory=dict)
    skips: tuple[Skip, ...] = ()
    shared_bias: str | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Residual:
    """How a sublayer stands to the residual stream, as far as that is not found on the model (`passes/joins.py`).

    Args:
        windowed: whether its linears see the tokens in windows, in another order than the residual stream.
    """

    windowed: bool = False


@dataclass(frozen=True)
class Group:
    """One sublayer's units.

    Args:
        layer: the layer's name, e.g. `"layers.3"`: stack and index, independent of module names.
        role: what the units are, e.g. `"heads"` or `"neurons"`.
        units: how many units there are now.
        width: consumer input columns per unit (a head's dimension; 1 for a neuron).
        cut: what is sliced when units are removed.
        residual: how it stands to the residual stream.
        config_fields: what a uniform layout must know: attributes of the model's config from which transformers' own
            class reads this size, each proportional to `units`; empty if that class cannot be built with fewer units.
        config_values: with these, other attributes that have to be written there, as the class derives them from
            others where the config leaves them open -> their values.
        step: with these, the number of units that stay has to be a multiple of it, as transformers refuses others.
        least: how few units may stay, as far as that was found out.
        parts: equal parts that the units fall into, one after the other, each of which has to keep equally many: the
            query heads of each KV head, the neurons of each expert.
        multiple: the number of units that stay has to be a multiple of it, as kernels refuse others.
    """

    layer: str
    role: str
    units: int
    width: int
    cut: Cut
    residual: Residual = Residual()
    config_fields: tuple[str, ...] = ()
    config_values: Mapping[str, int] = field(default_factory=dict)
    step: int = 1
    least: int = 0
    parts: int = 1
    multiple: int = 1

    @property
    def key(self) -> str:
        """`"layers.3.heads"`: the group's name in masks, scores, costs and on disk."""
        return f"{self.layer}.{self.role}"

    @property
    def consumers(self) -> tuple[Consumer, ...]:
        """The linears and convolutions that read the units; none where something else reads them as well."""
        return self.cut.consumers

    @property
    def consumer(self) -> str | None:
        """Path of the one that reads the units; `None` where there are none or several."""
        return self.consumers[0].path if len(self.consumers) == 1 else None

    def first(self, count: int) -> Tensor:
        """A mask of the first units of each part, so many in all, or a few more where only some numbers may stay."""
        inside, step = self.units // self.parts, max(self.multiple // self.parts, 1)
        return (torch.arange(inside) < -(-count // (self.parts * step)) * step).repeat(self.parts)

    def every_other(self) -> Tensor:
        """A mask of every other unit of each part, or of a few less where only some numbers may stay."""
        inside, step = self.units // self.parts, max(self.multiple // self.parts, 1)
        mask = torch.arange(inside) % 2 == 0
        most = max(int(mask.sum()) // step, 1) * step
        return (mask & (mask.cumsum(0) <= most) if most <= mask.sum() else torch.ones_like(mask)).repeat(self.parts)

    def inputs_of(self, consumer: Consumer) -> slice:
        """Which of a consumer's input columns, or channels, are the units."""
        start = next(part.start for part in self.cut.reads if part.tensor == f"{consumer.path}.weight")
        return slice(start, start + self.units * consumer.width)

    @property
    def producers(self) -> tuple[Producer, ...]:
        """The linears and convolutions that write the units."""
        return self.cut.producers


def channel_width(group: Group, consumer: Consumer) -> int:
    """How many of a consumer's input columns are places of one channel: 1 where units are heads or neurons."""
    return consumer.width if group.role.endswith(CHANNELS) else 1


def consumers_by_path(groups: Iterable[Group]) -> dict[str, tuple[Group, Consumer]]:
    """Path of every consumer -> the first group whose units it reads, and how; several may share one."""
    found: dict[str, tuple[Group, Consumer]] = {}
    for group in groups:
        for consumer in group.consumers:
            found.setdefault(consumer.path, (group, consumer))
    return found


@dataclass(frozen=True)
class Groups:
    """All groups of a model in order of execution, with its layers and stacks: found once, and handed down.

    Iterates over the groups.

    Args:
        members: the groups.
        layers: every layer in order of execution, those without units included: name -> module path.
        inputs: every stack in order of execution: name -> the model input that the stack's tokens are made of.
        left_whole: what was found and is in no group, because it cannot be cut or was not proved: name -> reason.
        sample: what the model was traced with, a batch of one sample; `None` if it was not traced.
        maps: names of the layers that return feature maps, shape (batch, channels, ...).
    """

    members: tuple[Group, ...]
    layers: Mapping[str, str]
    inputs: Mapping[str, str]
    left_whole: Mapping[str, str] = field(default_factory=dict)
    sample: Mapping[str, Any] | None = field(default=None, repr=False, compare=False)
    maps: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[Group]:
        return iter(self.members)

    def __len__(self) -> int:
        return len(self.members)

    def __getitem__(self, index: int) -> Group:
        return self.members[index]

    def of_role(self, role: str) -> Groups:
        """The groups of one role alone."""
        return replace(self, members=tuple(group for group in self.members if group.role == role))
