"""Barriers: every contraction with a parameter returns what it returned at first, and notes what changed in its input.

So taint ends where it is first read, layers cannot confuse each other, and a pass costs little more than its cheap
operations. The model itself is never written to: operations that read a tainted tensor get a tainted copy of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from .contractions import Contraction, Rearranged, contraction_of, is_product
from .readers import Reader
from .recording import Record, reader_of, tensors_in
from .tensors import Axis, Tensors

Taint = Mapping[str, tuple[int, Tensor]]
"""Tensor name -> dimension, and the indices there that are spoilt."""

_LARGE = 1 << 20  # entries: a copy of so many is kept for the next pass, and what was spoilt in it is made good


class Copies:
    """Tainted copies of tensors; those of large ones are kept from one pass to the next, if it spoils them again.

    Args:
        tensors: the model's.
    """

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors
        self._kept: dict[str, tuple[Tensor, int, Tensor]] = {}
        self._now: dict[str, Tensor] = {}

    def forget(self, but: Taint) -> None:
        """Drop all copies, but those of large tensors that are spoilt in the next pass as well."""
        self._now.clear()
        self._kept = {name: kept for name, kept in self._kept.items() if name in but}

    def view(self, value: Tensor, name: str, taint: Taint, noise: float | None) -> Tensor:
        """The view of a tensor's tainted copy that corresponds to a view of the tensor."""
        tensor = self._tensors.by_name[name]
        if name not in self._now:
            self._now[name] = self._spoilt(name, tensor, *taint[name], noise)
        copy = self._now[name]
        offset = value.storage_offset() - tensor.storage_offset() + copy.storage_offset()
        return copy.as_strided(value.shape, value.stride(), offset)

    def _spoilt(self, name: str, tensor: Tensor, dim: int, index: Tensor, noise: float | None) -> Tensor:
        if name in self._kept:
            copy, earlier, spoilt = self._kept[name]
            copy.index_copy_(earlier, spoilt, tensor.index_select(earlier, spoilt))
        else:
            copy = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
            copy.copy_(tensor)
        if tensor.numel() >= _LARGE:
            self._kept[name] = copy, dim, index
        if noise is None:
            return copy.index_fill_(dim, index, torch.nan)
        part = copy.index_select(dim, index)
        return copy.index_copy_(dim, index, part + noise * (1 + part.abs().max()) * torch.randn_like(part))


class Barriers(TorchDispatchMode):
    """A pass with taint: `seen` says which channels of each reader changed.

    Args:
        tensors: the model's.
        record: of a pass without taint.
        copies: of tensors, tainted.
        taint: what is spoilt.
        noise: by how much, instead of NaN; for operations that let no NaN through.
    """

    def __init__(
        self, tensors: Tensors, record: Record, copies: Copies, taint: Taint, noise: float | None = None
    ) -> None:
        super().__init__()
        self.tensors, self.record, self.taint, self.noise = tensors, record, taint, noise
        self.seen: dict[Reader, Tensor] = {}
        self._copies = copies
        self._copies.forget(but=taint)
        self._calls: Counter[Reader] = Counter()
        self._products, self._lost = 0, False
        self._to_replace = {name for name in taint if name in record.plain}

    @property
    def astray(self) -> bool:
        """Whether another pass ran than the one recorded: values decided what runs."""
        return self._lost or any(self._calls[reader] != len(calls) for reader, calls in self.record.calls.items())

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        options = options or {}
        contraction = contraction_of(operation, arguments, self.tensors)
        if contraction is not None:
            return self._contract(operation, arguments, options, contraction)
        if self._to_replace and not operation.is_view:
            arguments = self._spoilt(arguments)
            options = {name: self._spoilt(value) for name, value in options.items()} if options else options
        if is_product(operation):
            self._products += 1
            if self._products in self.record.rearranged:
                return self._multiply(operation, arguments, options, self.record.rearranged[self._products])
        return operation(*arguments, **options)

    def _contract(self, operation: Any, arguments: Any, options: Any, contraction: Contraction) -> Tensor:
        inputs = arguments[contraction.place]
        recorded = self._recorded(reader_of(contraction.summed), inputs)
        if recorded is None:
            self._note(contraction, torch.ones_like(inputs, dtype=torch.bool))
            return operation(*arguments, **options)
        clean, output = recorded
        self._note(contraction, self._changed(inputs, clean))
        spoilt = [name for name in map(self.tensors.name_of, tensors_in(arguments)) if name in self.taint]
        if not spoilt:
            return output.clone()
        if all(_tells(contraction, name, self.taint[name][0]) for name in spoilt):
            return self._marked(output.clone(), contraction, spoilt)
        arguments = list(arguments)
        arguments[contraction.place] = clean.clone()
        return operation(*self._spoilt(arguments), **options)

    def _multiply(self, operation: Any, arguments: Any, options: Any, product: Rearranged) -> Tensor:
        inputs, weight = arguments[product.place], arguments[product.weight]
        recorded = self._recorded(product.reader, inputs)
        if recorded is None:
            return operation(*arguments, **options)
        clean, output = recorded
        reached = product.channels_of(self._changed(inputs, clean))
        arguments = list(arguments)
        if self.noise is None:
            marked = weight.isnan()
            own = product.channels_of(marked, of_weight=True)
            self._see(product.reader, reached | own)
            rest = product.without(marked, own)
            output = output.clone()
            if rest.any():
                arguments[product.place] = torch.ones_like(inputs)
                arguments[product.weight] = rest.to(weight.dtype)
                if product.bias is not None:
                    arguments[product.bias] = torch.zeros_like(arguments[product.bias])
                output[operation(*arguments, **options) != 0] = torch.nan
            return output
        self._see(product.reader, reached)
        if product.reader.tensor in self.taint:  # noise does not tell which of its channels it reads
            return output.clone()
        arguments[product.place] = clean.clone()
        return operation(*arguments, **options)

    def _recorded(self, reader: Reader, inputs: Tensor) -> tuple[Tensor, Tensor] | None:
        """Input and output of the next call, without taint; `None` if it is another one, since values decide."""
        call, calls = self._calls[reader], self.record.calls[reader]
        self._calls[reader] += 1
        if call < len(calls) and calls[call][0].shape == inputs.shape:
            return calls[call]
        self._lost = True
        return None

    def _changed(self, inputs: Tensor, clean: Tensor) -> Tensor:
        return inputs.isnan() if self.noise is None else inputs != clean

    def _note(self, contraction: Contraction, changed: Tensor) -> None:
        for axis, place in ((contraction.summed, contraction.channels), (contraction.batch, 0)):
            if axis is not None:
                channels = changed.movedim(place, 0).flatten(1).any(1)
                seen = channels.new_zeros(axis.whole)
                seen[axis.start : axis.start + axis.count] = channels
                self._see(reader_of(axis), seen)

    def _see(self, reader: Reader, channels: Tensor) -> None:
        self.seen[reader] = self.seen[reader] | channels if reader in self.seen else channels

    def _marked(self, output: Tensor, contraction: Contraction, spoilt: list[str]) -> Tensor:
        """What the contraction would return: spoilt in all that is written by spoilt rows, and nowhere else."""
        for name in spoilt:
            dim, index = self.taint[name]
            if _lies_in(contraction.summed, name, dim):
                if contraction.summed.touched(dim, index).any():
                    self._mark(output, slice(None))
                continue
            for place, axis in contraction.written:
                if _lies_in(axis, name, dim):
                    self._mark(output.movedim(place, 0), axis.touched(dim, index))
        return output

    def _mark(self, output: Tensor, rows: Tensor | slice) -> None:
        if self.noise is None:
            output[rows] = torch.nan
        elif output.numel():
            part = output[rows]
            output[rows] = part + self.noise * (1 + output.abs().max()) * torch.randn_like(part)

    def _spoilt(self, value: Any) -> Any:
        """Arguments of an operation, with tainted copies for tainted tensors."""
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._spoilt, value))
        name = self.tensors.name_of(value) if isinstance(value, Tensor) else None
        return self._copies.view(value, name, self.taint, self.noise) if name in self.taint else value


def _tells(contraction: Contraction, name: str, dim: int) -> bool:
    """Whether the output's NaN follow from where the tensor's are."""
    return any(_lies_in(axis, name, dim) for axis in (contraction.summed, *(axis for _, axis in contraction.written)))


def _lies_in(axis: Axis, name: str, dim: int) -> bool:
    return axis.tensor == name and dim in axis.dims
