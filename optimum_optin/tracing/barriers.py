"""Barriers: every contraction with a parameter returns what it returned at first, and notes what changed in its input.

So taint ends where it is first read, layers cannot confuse each other, and a pass costs little more than its cheap
operations. The model itself is never written to: operations that read a tainted tensor get a tainted copy of it.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .contractions import Contraction, contraction_of
from .tensors import Axis, Tensors

Taint = Mapping[str, tuple[int, Tensor]]
"""Tensor name -> dimension, and the indices there that are spoilt."""


OUTPUT = "the model's output"


class Reader(NamedTuple):
    """What reads channels: a dimension of a weight, one index of which has `inner` channels; or a model's output."""

    tensor: str
    dim: int
    inner: int = 1

    @property
    def is_output(self) -> bool:
        """Whether these are channels of the model's output."""
        return self.tensor.startswith(OUTPUT)


@dataclass
class Record:
    """What every contraction reads and writes in a pass without taint, call by call, and how tensors are used.

    Args:
        calls: reader -> input and output of each call.
        plain: tensors that other operations than contractions read, and which operations.
        summed: dimensions of tensors that contractions sum over.
    """

    calls: dict[Reader, list[tuple[Tensor, Tensor]]] = field(default_factory=lambda: defaultdict(list))
    plain: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    summed: set[tuple[str, int]] = field(default_factory=set)


class Recording(TorchDispatchMode):
    """Fills a record."""

    def __init__(self, tensors: Tensors) -> None:
        super().__init__()
        self.tensors, self.record = tensors, Record()

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        contraction = contraction_of(operation, arguments, self.tensors)
        read = _tensors_in(arguments)
        inputs = None if contraction is None else read_input(arguments, contraction).clone()
        names = {name for name in map(self.tensors.name_of, read) if name}
        if written := names & _written_names(operation, arguments, self.tensors):
            raise ValueError(
                f"the model's forward pass writes to {', '.join(sorted(written))}: it cannot be run again and again "
                "without being another model afterwards. Let it keep such state elsewhere."
            )
        output = operation(*arguments, **(options or {}))
        if contraction is None:
            for name in () if operation.is_view else names:
                self.record.plain[name].add(operation._schema.name.removeprefix("aten::"))
            return output
        if inputs.isnan().any():
            raise ValueError(f"{contraction.summed.tensor} reads NaN in the sample: give one without, of full length.")
        self.record.calls[reader_of(contraction.summed)].append((inputs, output.clone()))
        self.record.summed |= {(contraction.summed.tensor, dim) for dim in contraction.summed.dims}
        return output


class Barriers(TorchDispatchMode):
    """A pass with taint: `seen` says which channels of each reader changed.

    Args:
        tensors: the model's.
        record: of a pass without taint.
        taint: what is spoilt.
        noise: by how much, instead of NaN; for operations that let no NaN through.
    """

    def __init__(self, tensors: Tensors, record: Record, taint: Taint, noise: float | None = None) -> None:
        super().__init__()
        self.tensors, self.record, self.taint, self.noise = tensors, record, taint, noise
        self.seen: dict[Reader, Tensor] = {}
        self._calls: Counter[Reader] = Counter()
        self._copies: dict[str, Tensor] = {}
        self._to_replace = {name for name in taint if name in record.plain}

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        contraction = contraction_of(operation, arguments, self.tensors)
        if contraction is None:
            if self._to_replace and not operation.is_view:
                arguments = self._spoilt(arguments)
            return operation(*arguments, **(options or {}))
        reader, inputs = reader_of(contraction.summed), read_input(arguments, contraction)
        call, calls = self._calls[reader], self.record.calls[reader]
        self._calls[reader] += 1
        if call >= len(calls) or calls[call][0].shape != inputs.shape:
            # Values decided what runs, so that all may depend on them.
            self._note(contraction, torch.ones_like(inputs, dtype=torch.bool))
            return operation(*arguments, **(options or {}))
        clean, output = calls[call]
        self._note(contraction, inputs.isnan() if self.noise is None else inputs != clean)
        spoilt = [name for name in map(self.tensors.name_of, _tensors_in(arguments)) if name in self.taint]
        if not spoilt:
            return output.clone()
        if self.noise is None and all(_tells(contraction, name, self.taint[name][0]) for name in spoilt):
            return self._with_nan(output.clone(), contraction, spoilt)
        arguments = list(arguments)
        arguments[contraction.place] = clean.clone()
        return operation(*self._spoilt(arguments), **(options or {}))

    def _note(self, contraction: Contraction, changed: Tensor) -> None:
        for axis, place in ((contraction.summed, contraction.channels), (contraction.batch, 0)):
            if axis is not None:
                channels = changed.movedim(place, 0).flatten(1).any(1)
                seen = self.seen.setdefault(reader_of(axis), channels.new_zeros(axis.whole))
                seen[axis.start : axis.start + axis.count] |= channels

    def _with_nan(self, output: Tensor, contraction: Contraction, spoilt: list[str]) -> Tensor:
        """What the contraction would return: NaN in all that is written by spoilt rows, and nowhere else."""
        for name in spoilt:
            dim, index = self.taint[name]
            if _lies_in(contraction.summed, name, dim):
                return output.fill_(torch.nan) if contraction.summed.touched(dim, index).any() else output
            for place, axis in contraction.written:
                if _lies_in(axis, name, dim):
                    output.movedim(place, 0)[axis.touched(dim, index)] = torch.nan
        return output

    def _spoilt(self, value: Any) -> Any:
        """Arguments of an operation, with tainted copies for tainted tensors."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._spoilt, value))
        name = self.tensors.name_of(value) if isinstance(value, Tensor) else None
        if name not in self.taint:
            return value
        tensor = self.tensors.by_name[name]
        if name not in self._copies:
            self._copies[name] = _spoil(tensor, *self.taint[name], self.noise)
        copy = self._copies[name]
        offset = value.storage_offset() - tensor.storage_offset() + copy.storage_offset()
        return copy.as_strided(value.shape, value.stride(), offset)


def reader_of(axis: Axis) -> Reader:
    """Who reads the channels that such an axis is summed over."""
    return Reader(axis.tensor, axis.dims[0], axis.inner)


def read_input(arguments: Any, contraction: Contraction) -> Tensor:
    """The input among a contraction's arguments."""
    return arguments[contraction.place]


def _spoil(tensor: Tensor, dim: int, index: Tensor, noise: float | None) -> Tensor:
    copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device).copy_(tensor)
    if noise is None:
        return copy.index_fill_(dim, index, torch.nan)
    part = copy.index_select(dim, index)
    return copy.index_copy_(dim, index, part + noise * (1 + part.abs().max()) * torch.randn_like(part))


def _tells(contraction: Contraction, name: str, dim: int) -> bool:
    """Whether the output's NaN follow from where the tensor's are."""
    return any(_lies_in(axis, name, dim) for axis in (contraction.summed, *(axis for _, axis in contraction.written)))


def _lies_in(axis: Axis, name: str, dim: int) -> bool:
    return axis.tensor == name and dim in axis.dims


def _tensors_in(arguments: Any) -> list[Tensor]:
    found = []
    for each in arguments:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, (list, tuple)):
            found += _tensors_in(each)
    return found


def _written_names(operation: Any, arguments: Any, tensors: Tensors) -> set[str | None]:
    """Names of the tensors that an operation changes in place."""
    places = zip(operation._schema.arguments, arguments, strict=False)
    written = [value for place, value in places if place.alias_info and place.alias_info.is_write]
    return {tensors.name_of(each) for each in _tensors_in(written)}
