"""Passes of a tiny sample through a model that is left as it was: which channels change if these indices are spoilt?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..running.forward import call_model
from ..running.freezing import frozen
from .barriers import OUTPUT, Barriers, Reader, Record, Recording, Taint
from .tensors import Tensors

_NOISE = 10.0
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
        self.tensors, self.count = Tensors(model), 0
        recording = Recording(self.tensors)
        self._clean = self._run(recording)
        self._record: Record = recording.record
        self.steady = True
        self.readers: dict[Reader, int] = {}
        self.steady = not self.reach({}, noise=True)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(iter(self.tensors.by_name.values())).device

    def sums_over(self, name: str, dim: int) -> bool:
        """Whether all that is done along a dimension is to sum over it, so that no index differs from another."""
        return (name, dim) in self._record.summed and name not in self._record.plain

    def unseen(self) -> dict[str, str]:
        """Weights whose products are not recognised, as they are copied or rearranged before: name -> the operation."""
        found = {}
        for name, operations in self._record.plain.items():
            unknown = sorted(operations & _UNKNOWN)
            if unknown and self.tensors.by_name[name].dim() > 1:
                found[name] = unknown[0]
        return found

    def reach(self, taint: Taint, noise: bool = False) -> dict[Reader, Tensor]:
        """Reader -> which of its channels change, a mask; those that no channel of changes are left out.

        With `noise`, nothing, where passes without any differ from each other.
        """
        if noise and not self.steady:
            return {}
        barriers = Barriers(self.tensors, self._record, taint, _NOISE if noise else None)
        try:
            outputs = self._run(barriers)
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:  # of a model that checks its values
            raise Untraceable(f"the model's forward pass stops when it is spoilt: {error}") from error
        if len(outputs) != len(self._clean):
            raise Untraceable("the model has other outputs when it is spoilt")
        for place, (output, clean) in enumerate(zip(outputs, self._clean, strict=True)):
            changed = output.isnan() & ~clean.isnan() if output.shape == clean.shape else torch.ones_like(output) > 0
            if noise and output.shape == clean.shape:
                changed = output != clean
            for dim in range(1, output.dim()):
                barriers.seen[Reader(f"{OUTPUT} {place}", dim)] = changed.movedim(dim, 0).flatten(1).any(1)
        self.readers = self.readers or {reader: len(channels) for reader, channels in barriers.seen.items()}
        return {reader: channels.cpu() for reader, channels in barriers.seen.items() if channels.any()}

    def _run(self, mode: Recording | Barriers) -> list[Tensor]:
        self.count += 1
        torch.default_generator.manual_seed(0)  # whatever is drawn is drawn alike in every pass
        if self.device.type == "cuda":
            torch.cuda.manual_seed(0)
        with torch.no_grad(), mode:
            return _floats(call_model(self._model, self._inputs))


@contextmanager
def watched(model: nn.Module, inputs: Mapping[str, Tensor]) -> Iterator[Passes]:
    """Passes through a model that is frozen meanwhile, with attention in plain operations; all is undone on exit.

    Raises:
        ValueError: parameters without values, or a pass that writes to the model or computes NaN.
    """
    if missing := [name for name, each in model.named_parameters() if each.is_meta]:
        raise ValueError(f"{missing[0]} is on the meta device, without values: load the model's weights first.")
    fast = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(), frozen(model), _eager_attention(model), sdpa_kernel(SDPBackend.MATH):
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield Passes(model, inputs)
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


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
    """The floating-point tensors among a model's outputs, in order; caches are no outputs."""
    if isinstance(outputs, Tensor):
        return [outputs] if outputs.is_floating_point() else []
    if dataclasses.is_dataclass(outputs) and not isinstance(outputs, Mapping):
        outputs = [getattr(outputs, field.name) for field in dataclasses.fields(outputs)]
    if isinstance(outputs, Mapping):
        outputs = list(outputs.values())
    return [each for part in outputs for each in _floats(part)] if isinstance(outputs, (list, tuple)) else []
