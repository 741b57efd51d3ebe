"""A record of one pass without taint: what contractions read and write, and which tensors can reach which of them.

What can reach what is read off the operations alone: whatever an operation reads may reach all that it writes, and a
contraction lets nothing of its input through. So a record never misses a road, and knows some that taint will not take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .contractions import Contraction, Rearranged, contraction_of, is_product, places_of, rearranged
from .readers import Reader
from .tensors import Axis, Tensors


@dataclass
class Record:
    """What contractions read and write, call by call, and how tensors are used.

    Args:
        calls: reader -> input and output of each call.
        plain: tensors that other operations than contractions read, and which operations.
        summed: dimensions of tensors that contractions sum over.
        feeds: reader -> the tensors that may reach it, as bits (`Tensors.bit`).
        weighs: reader -> the same of the weight that it multiplies with, where that was rearranged before.
        rearranged: number of a product of two activations, or so it seems -> what it is with a rearranged weight.
        outputs: the same bits for each of the model's outputs.
        used: tensors that any operation reads.
        cuts: size of a dimension -> where activations are cut along such a one (into queries, keys and values).
    """

    calls: dict[Reader, list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    plain: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    summed: set[tuple[str, int]] = field(default_factory=set)
    feeds: dict[Reader, int] = field(default_factory=lambda: defaultdict(int))
    weighs: dict[Reader, int] = field(default_factory=lambda: defaultdict(int))
    rearranged: dict[int, Rearranged] = field(default_factory=dict)
    outputs: list[int] = field(default_factory=list)
    used: set[str] = field(default_factory=set)
    cuts: dict[int, set[int]] = field(default_factory=lambda: defaultdict(set))


class WritesError(Exception):
    """A pass is about to write to tensors of the model, which are `names`."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(f"the model's forward pass writes to {', '.join(sorted(names))}")
        self.names = tuple(names)


class Recording(TorchDispatchMode):
    """Fills a record.

    Args:
        tensors: the model's.
        inputs: of the pass.
        loose: names of tensors that it may write to.

    Raises:
        WritesError: it writes to another one.
    """

    def __init__(self, tensors: Tensors, inputs: Iterable[Any], loose: Iterable[str] = ()) -> None:
        super().__init__()
        self._loose = set(loose)
        self.tensors, self.record = tensors, Record()
        # Memory -> the tensors that it may depend on, and whether on nothing else.
        self._flow: dict[int, tuple[int, bool]] = {memory_of(each): (0, False) for each in tensors_in(inputs)}
        self._products = 0

    def sources_of(self, value: Tensor) -> int:
        """The tensors that a value may depend on, without roads through contractions."""
        return self._flow_of(value)[0]

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        contraction = contraction_of(operation, arguments, self.tensors)
        read = tensors_in([*arguments, *options.values()])
        sources, pure = self._sources(read)
        names = {name for name in map(self.tensors.name_of, read) if name}
        if not operation.is_view:
            self.record.used |= names
        if contraction is not None:
            return self._contract(operation, arguments, options, contraction)
        if written := (names & _written_names(operation, arguments, options, self.tensors)) - self._loose:
            raise WritesError(written)
        for name in () if operation.is_view else names:
            self.record.plain[name].add(operation._schema.name.removeprefix("aten::"))
        if is_product(operation):
            self._products += 1
            if (found := self._rearranged(operation, arguments)) is not None:
                return self._multiply(operation, arguments, options, found)
        output = operation(*arguments, **options)
        if operation.is_view and len(read) == 1:
            self._note_cuts(read[0], tensors_in([output]))
        self._note(output, read, sources, pure)
        return output

    def _contract(self, operation: Any, arguments: Any, options: Any, contraction: Contraction) -> Tensor:
        value = arguments[contraction.place]
        inputs = _checked(value, contraction.summed.tensor)
        output = operation(*arguments, **options)
        self.record.calls[reader_of(contraction.summed)].append((inputs, output.clone()))
        self.record.summed |= {(contraction.summed.tensor, dim) for dim in contraction.summed.dims}
        for axis in (contraction.summed, contraction.batch):
            if axis is not None:
                self.record.feeds[reader_of(axis)] |= self.sources_of(value)
        others = [each for each in tensors_in([*arguments, *options.values()]) if each is not value]
        self._flow[memory_of(output)] = self._sources(others)[0], False
        return output

    def _rearranged(self, operation: Any, arguments: Any) -> Rearranged | None:
        """A product of an activation with what is a weight's, in another order or rescaled, and nothing else's."""
        places = places_of(operation)
        flows = [self._flow_of(arguments[place]) for place in places]
        ours = [place for place, (sources, pure) in zip(places, flows, strict=True) if pure and sources]
        if len(ours) != 1:
            return None
        name = self._weight_of(arguments[ours[0]])
        if name is None:
            return None
        found = rearranged(operation, arguments, ours[0], Reader(name, -self._products))
        if found is not None:
            self.record.weighs[found.reader] = self.sources_of(arguments[ours[0]])
        return found

    def _weight_of(self, value: Tensor) -> str | None:
        """The one tensor that a value is a rearrangement of: with as many entries, next to smaller ones."""
        sources = self.tensors.names_of(self.sources_of(value))
        sizes = {name: self.tensors.by_name[name].numel() for name in sources}
        weights = [
            name for name, size in sizes.items() if size == value.numel() and self.tensors.by_name[name].dim() > 1
        ]
        return weights[0] if len(weights) == 1 and max(sizes.values()) == value.numel() else None

    def _multiply(self, operation: Any, arguments: Any, options: Any, found: Rearranged) -> Tensor:
        value = arguments[found.place]
        inputs = _checked(value, found.reader.tensor)
        output = operation(*arguments, **options)
        self.record.rearranged[self._products] = found
        self.record.calls[found.reader].append((inputs, output.clone()))
        self.record.feeds[found.reader] |= self.sources_of(value)
        others = [each for each in tensors_in([*arguments, *options.values()]) if each is not value]
        self._flow[memory_of(output)] = self._sources(others)[0], False
        return output

    def _note_cuts(self, whole: Tensor, parts: Iterable[Tensor]) -> None:
        for part in parts:
            if part.dim() != whole.dim():
                continue
            dims = [dim for dim in range(part.dim()) if part.shape[dim] != whole.shape[dim]]
            if len(dims) == 1 and whole.stride(dims[0]):
                start = (part.storage_offset() - whole.storage_offset()) // whole.stride(dims[0])
                self.record.cuts[whole.shape[dims[0]]] |= {start, start + part.shape[dims[0]]}

    def _note(self, output: Any, read: Iterable[Tensor], sources: int, pure: bool) -> None:
        before = {memory_of(each) for each in read}
        for each in tensors_in([output]):
            memory = memory_of(each)
            if memory in before:  # a view, or written in place
                earlier, was_pure = self._flow.get(memory, (0, True))
                self._flow[memory] = earlier | sources, was_pure and pure
            else:
                self._flow[memory] = sources, pure

    def _sources(self, values: Iterable[Tensor]) -> tuple[int, bool]:
        sources, pure = 0, True
        for each in values:
            own, own_pure = self._flow_of(each)
            sources, pure = sources | own, pure and own_pure
        return sources, pure

    def _flow_of(self, value: Tensor) -> tuple[int, bool]:
        name = self.tensors.name_of(value)
        sources, pure = self._flow.get(memory_of(value), (0, True))
        return (sources | self.tensors.bit(name), pure) if name else (sources, pure)


def reader_of(axis: Axis) -> Reader:
    """Who reads the channels that such an axis is summed over."""
    return Reader(axis.tensor, axis.dims[0], axis.inner)


def memory_of(tensor: Tensor) -> int:
    """What identifies the memory that a tensor lies in."""
    return tensor.untyped_storage()._cdata


def tensors_in(arguments: Any) -> list[Tensor]:
    """The tensors among arguments, in lists as well."""
    found = []
    for each in arguments:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += tensors_in(each)
    return found


def _checked(inputs: Tensor, name: str) -> Tensor:
    if inputs.isnan().any():
        raise ValueError(f"{name} reads NaN in the sample: give one without, of full length.")
    return inputs.clone()


def _written_names(operation: Any, arguments: Any, options: Any, tensors: Tensors) -> set[str | None]:
    """Names of the tensors that an operation changes in place."""
    schema = operation._schema.arguments
    places = [*zip(schema, arguments, strict=False), *((each, options.get(each.name)) for each in schema)]
    written = [value for place, value in places if place.alias_info and place.alias_info.is_write]
    return {tensors.name_of(each) for each in tensors_in(written)}
