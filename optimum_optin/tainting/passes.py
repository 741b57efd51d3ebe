"""Passes of a tiny sample through a model that is left as it was: which channels change if these indices are spoilt?"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..running.forward import call_model
from ..running.freezing import frozen
from ..running.memory import is_out_of_memory
from .barriers import Barriers, Copies, Taint
from .readers import OUTPUT, Reader
from .recording import Record, Recording, WritesError
from .tensors import Tensors, bits_in

_NOISE = 10.0
# Outputs for inspection and for later passes: that they have an axis of heads says nothing against fewer heads.
_BESIDE = re.compile(r".*(attentions|attention_weights|attn_weights|key_values|cache|cache_params)")
# What a weight goes through where it is no plain view in a product: of such a product's inputs nothing is known.
_UNKNOWN = {
    "clone",
    "_to_copy",
    "mm",
    "mv",
    "bmm",
    "addmm",
    "baddbmm",
    "_grouped_mm",
    "lstm",
    "gru",
    "mkldnn_rnn_layer",
}


class Untraceable(Exception):
    """A pass with spoilt tensors says nothing, or does not come to its end."""


class Passes:
    """Runs a model again and again, with other tensors spoilt each time.

    Args:
        model: in evaluation mode; see `watched`.
        inputs: one tiny sample, name -> tensor.
    """

    def __init__(self, model: nn.Module, inputs: Mapping[str, Tensor]) -> None:
        self._model, self._inputs = model, inputs
        self._state: dict[str, tuple[Tensor, Tensor]] = {}
        self.count, self.steady = 0, True
        self._record, self._clean = self._recorded()
        self._copies = Copies(self.tensors)
        self.readers: dict[Reader, int] = {}
        changed, _ = self.reach({}, noise=True)
        self.steady = not changed
        self._order = list(self.readers)
        self._reached = self._roads()

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.tensors.by_name.values())).device

    def readers_of(self, names: Iterable[str]) -> int:
        """All readers that tensors may reach, as bits."""
        readers = 0
        for name in names:
            readers |= self._reached.get(name, 0)
        return readers

    def readers_in(self, bits: int) -> set[Reader]:
        """The readers whose bits these are."""
        return {self._order[place] for place in bits_in(bits)}

    def bits_of(self, readers: Iterable[Reader]) -> int:
        """The bits of readers."""
        return sum(1 << place for place in {self._order.index(reader) for reader in readers})

    def weighs(self, name: str, reader: Reader) -> bool:
        """Whether a tensor reaches a reader as its weight, and not through what it reads."""
        bit = self.tensors.bit(name)
        return bool(self._record.weighs.get(reader, 0) & bit) and not self._record.feeds[reader] & bit

    def sums_over(self, name: str, dim: int) -> bool:
        """Whether all that is done along a dimension is to sum over it, so that no index differs from another."""
        return (name, dim) in self._record.summed and name not in self._record.plain

    def is_plain(self, name: str) -> bool:
        """Whether a tensor is in no product itself, neither as it is nor rearranged."""
        ours = (*self._record.summed, *((product.reader.tensor, 0) for product in self._record.rearranged.values()))
        return all(name != other for other, _ in ours)

    @property
    def used(self) -> set[str]:
        """The tensors that the model's pass reads."""
        return self._record.used

    def cuts(self, size: int) -> list[int]:
        """Where activations are cut along a dimension of a size, and their parts once more, in rising order."""
        own = sorted({0, size, *(place for place in self._record.cuts.get(size, ()) if 0 < place < size)})
        found = set(own)
        for start, end in pairwise(own):
            inner = self._record.cuts.get(end - start, ()) if end - start < size else ()
            found |= {start + place for place in inner if 0 < place < end - start}
        return sorted(found)

    def unseen(self) -> dict[str, str]:
        """Weights whose products are not recognised, as they are copied or rearranged before: name -> the operation."""
        found = {}
        known = {product.reader.tensor for product in self._record.rearranged.values()}
        for name, operations in self._record.plain.items():
            unknown = sorted(operations & _UNKNOWN)
            if unknown and self.tensors.by_name[name].dim() > 1 and name not in known:
                found[name] = unknown[0]
        return found

    def reach(self, taint: Taint, noise: bool = False) -> tuple[dict[Reader, Tensor], bool]:
        """What changes: reader -> which of its channels, a mask, without those of which none do; and whether another
        pass ran than the one recorded.

        With `noise`, nothing, where passes without any differ from each other.
        """
        if noise and not self.steady:
            return {}, False
        barriers = Barriers(self.tensors, self._record, self._copies, taint, _NOISE if noise else None)
        try:
            outputs = _floats(self._run(barriers))
        except (RuntimeError, ValueError, IndexError, AssertionError, TypeError, KeyError) as error:
            # of a model that checks its values
            if is_out_of_memory(error):
                raise
            raise Untraceable(f"the model's forward pass stops when it is spoilt: {error}") from error
        if len(outputs) != len(self._clean):
            raise Untraceable("the model has other outputs when it is spoilt")
        for place, (output, clean) in enumerate(zip(outputs, self._clean, strict=True)):
            changed = output.isnan() & ~clean.isnan() if output.shape == clean.shape else torch.ones_like(output) > 0
            if noise and output.shape == clean.shape:
                changed = (output != clean) & ~(output.isnan() & clean.isnan())
            for dim in range(1, output.dim()):
                barriers.seen[Reader(f"{OUTPUT} {place}", dim)] = changed.movedim(dim, 0).flatten(1).any(1)
        self.readers = self.readers or {reader: len(channels) for reader, channels in barriers.seen.items()}
        reached = {reader: channels.cpu() for reader, channels in barriers.seen.items() if channels.any()}
        return reached, barriers.astray

    def _recorded(self) -> tuple[Record, list[Tensor]]:
        """A pass that is recorded; whatever of the model it writes to is a copy, made new before each pass."""
        while True:
            self.tensors = Tensors(self._model)
            recording = Recording(self.tensors, list(self._inputs.values()), self._state)
            try:
                outputs = _floats(self._run(recording))
            except WritesError as error:
                for name in error.names:
                    self._detach(name)
                continue
            recording.record.outputs = [recording.sources_of(output) for output in outputs]
            return recording.record, outputs

    def _detach(self, name: str) -> None:
        """Put a copy in the place of a tensor; `watched` puts the tensor back."""
        path, _, own = name.rpartition(".")
        module = self._model.get_submodule(path)
        tensor = self.tensors.by_name[name]
        held = next(each for each in (module._parameters, module._buffers) if own in each)
        original = held[own]
        copy = tensor.clone()
        self._state[name] = original, copy
        for each in self._model.modules():  # shared ones, too
            for places in (each._parameters, each._buffers):
                for key, value in places.items():
                    if value is original:
                        places[key] = nn.Parameter(copy, requires_grad=False) if places is each._parameters else copy

    def _roads(self) -> dict[str, int]:
        """Tensor -> all readers that it may reach, as bits."""
        sources = {reader: self._record.feeds[reader] | self._record.weighs[reader] for reader in self._order}
        for place, bits in enumerate(self._record.outputs):
            for reader in self._order:
                if reader.tensor == f"{OUTPUT} {place}":
                    sources[reader] = bits
        reached: dict[str, int] = {}
        for place, reader in enumerate(self._order):
            for name in self.tensors.names_of(sources[reader]):
                reached[name] = reached.get(name, 0) | 1 << place
        return reached

    def _run(self, mode: Recording | Barriers) -> Any:
        self.count += 1
        for original, copy in self._state.values():
            copy.copy_(original)
        torch.default_generator.manual_seed(0)  # whatever is drawn is drawn alike in every pass
        random.seed(0)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(0)
        with torch.no_grad(), mode:
            return call_model(self._model, self._inputs)


@contextmanager
def watched(model: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[Passes]:
    """Passes through a model that is frozen meanwhile, with attention in plain operations; all is undone on exit.

    Raises:
        ValueError: parameters without values, or a pass that writes to the model or computes NaN.
    """
    if missing := [name for name, each in model.named_parameters() if each.is_meta]:
        raise ValueError(f"{missing[0]} is on the meta device, without values: load the model's weights first.")
    fast, drawn = torch.backends.mha.get_fastpath_enabled(), random.getstate()
    with (
        torch.random.fork_rng(),
        _same_tensors(model),
        frozen(model),
        _eager_attention(model),
        sdpa_kernel(SDPBackend.MATH),
    ):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield Passes(model, inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)
            random.setstate(drawn)


@contextmanager
def _same_tensors(model: nn.Module) -> Iterator[None]:
    """Parameters and buffers are the same objects afterwards, whatever was put in their places."""
    before = [(places, dict(places)) for module in model.modules() for places in (module._parameters, module._buffers)]
    try:
        yield
    finally:
        for places, held in before:
            places.clear()
            places.update(held)


@contextmanager
def _eager_attention(model: nn.Module) -> Iterator[None]:
    """Attention as its author wrote it out: kernels need not let NaN through."""
    if not hasattr(model, "set_attn_implementation"):
        yield
        return
    configs = _configs(model)
    before = [dict(vars(config)) for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, attributes in zip(configs, before, strict=True):
            vars(config).clear()
            vars(config).update(attributes)


def _configs(model: nn.Module) -> list[Any]:
    """The configs that a model's modules read, each once, with the configs inside them."""
    found: dict[int, Any] = {}
    waiting = [config for module in model.modules() if (config := getattr(module, "config", None)) is not None]
    while waiting:
        config = waiting.pop()
        if id(config) not in found and hasattr(config, "_attn_implementation"):
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in getattr(config, "sub_configs", {})]
    return list(found.values())


def _floats(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among a model's outputs, in order; caches and maps of attention are none."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = {field.name: getattr(outputs, field.name) for field in dataclasses.fields(outputs)}
    if isinstance(outputs, Mapping):
        outputs = [value for name, value in outputs.items() if not _BESIDE.fullmatch(str(name))]
    return [each for part in outputs for each in _floats(part)] if isinstance(outputs, (list, tuple)) else []
