"""A calibration batch on its way through the dense and the pruned model, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.find import find_layers
from ..architectures.group import HEADS, Group, attribute, stack_of
from ..editing.masking import differentiable, gradients
from ..inputs.tokens import TokenMasks, token_masks
from ..running.batch import Batch
from .losses import probe_output
from .token_weights import token_weights
from .trajectory import Passage, compared_output, draw_rows, hidden_states, observed

Rows = tuple[Tensor, Tensor, Tensor]
"""Inputs and errors of a regression, of shape (valid tokens, features), and a weight per row."""


@dataclass
class _Call:
    """How a layer was called, less its hidden states."""

    args: tuple
    kwargs: dict[str, Any]

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return hidden_states(layer(hidden, *self.args, **self.kwargs))


@dataclass(frozen=True)
class Start:
    """What the dense model says about a batch, whatever is pruned; see `dense_pass`.

    Args:
        real: the real tokens.
        hidden: stack name -> its first layer's input, shape (batch, tokens, channels).
        calls: how every layer is called, by name.
        weights: group key -> weight of every token, shape (batch, tokens) as the group's consumer sees them.
    """

    real: TokenMasks
    hidden: dict[str, Tensor]
    calls: dict[str, _Call]
    weights: dict[str, Tensor]


class Walk:
    """One calibration batch on its way through a stack of the dense model.

    Args:
        start: what the dense model says about the batch.
        stack: name of the stack.

    Attributes:
        call: how the current layer is called.
        sources: group key -> what the producers of each of its sublayers read, shape (batch, tokens, channels).
        targets: group key -> what each sublayer makes of its residual stream, of the same shape.
    """

    def __init__(self, start: Start, stack: str):
        self.start = start
        self.hidden = start.hidden[stack]

    def enter(self, name: str, dense: nn.Module, path: str, groups: list[Group]) -> None:
        """Run the dense layer; keep what each sublayer reads and what it makes of its residual stream."""
        self.call = self.start.calls[name]
        with observed(dense, _paths(dense, groups)) as seen:
            output = self.call.run(dense.get_submodule(path), self.hidden)
        self.sources = {
            group.key: seen[group.producers[0].path].input for group in groups if group.producers[0].path in seen
        }
        self.targets = {
            group.key: _residual(dense, self.hidden, groups[:index], group, seen) + _written(dense, group, seen)
            for index, group in enumerate(groups)
        }
        self.hidden = output


class PrunedWalk:
    """The same batch on its way through a pruned model, layer by layer beside the dense one.

    Args:
        dense: the dense model's walk.
    """

    def __init__(self, dense: Walk):
        self.dense = dense
        self.hidden = dense.hidden

    def input_errors(self, pruned: nn.Module, path: str, group: Group) -> Rows:
        """What the group's producers read in the pruned model, and what that lacks."""
        producer = group.producers[0].path
        with observed(pruned, [producer], stop_after=producer) as seen:
            self._run(pruned, path)
        read = seen[producer].input
        weights = self._weights(group)
        if group.role == HEADS:  # attention reads every token for the sake of others: its output's weights do not apply
            weights = (weights > 0).float()
        return self._rows(group, read, self.dense.sources[group.key] - read, weights)

    def output_errors(self, pruned: nn.Module, path: str, group: Group, earlier: list[Group]) -> Rows:
        """What the group's consumer reads in the pruned model, and what the stream lacks after the sublayer."""
        with observed(pruned, _paths(pruned, [*earlier, group]), stop_after=group.consumer) as seen:
            self._run(pruned, path)
        stream = _residual(pruned, self.hidden, earlier, group, seen) + _written(pruned, group, seen)
        lacking = self.dense.targets[group.key] - stream
        return self._rows(group, seen[group.consumer].input, lacking, self._weights(group))

    def leave(self, pruned: nn.Module, path: str) -> None:
        """Run the refitted pruned layer."""
        self.hidden = self._run(pruned, path)

    def _run(self, pruned: nn.Module, path: str) -> Tensor:
        return self.dense.call.run(pruned.get_submodule(path), self.hidden)

    def _weights(self, group: Group) -> Tensor:
        weights = self.dense.start.weights[group.key]
        if group.windowed:  # windows are filled up with zeros, whose output is dropped
            weights = weights * self.dense.sources[group.key].any(-1).to(weights)
        return weights

    def _rows(self, group: Group, inputs: Tensor, errors: Tensor, weights: Tensor) -> Rows:
        rows = inputs, errors, weights.to(inputs.device)
        real = _real(group, self.dense.start.real)
        if real is None:
            return tuple(each.flatten(0, 1) for each in rows)
        return tuple(each[real.to(inputs.device)] for each in rows)


def real_rows(group: Group, source: Tensor, real: TokenMasks) -> Tensor | None:
    """Which rows of what a group's linears see are tokens, as a mask of its shape but for the features.

    Args:
        group: the group.
        source: what its producers read, shape (batch, tokens, channels), or windows of tokens one after another.
        real: the batch's real tokens.

    Returns:
        `None` where all are: padding stands in for no token, nor does what fills up windows.
    """
    return source.any(-1) if group.windowed else _real(group, real)


def _real(group: Group, real: TokenMasks) -> Tensor | None:
    """The real tokens of the group's stack, `None` where all are: then a layer may have others in their place."""
    mask = real[stack_of(group.layer)]
    return None if mask.all() else mask


def _residual(
    model: nn.Module, hidden: Tensor, earlier: list[Group], group: Group, seen: Mapping[str, Passage]
) -> Tensor:
    """The residual stream that a sublayer's output is added to."""
    if group.windowed or group.normed_output:  # in another order or scale than the output, all there is to aim at
        return hidden.new_zeros(())
    if group.stream:
        return seen[group.stream].input
    if group.pre_norm:
        return sum((_written(model, before, seen) for before in earlier), hidden)
    producer = group.producers[0].path
    # Producers go with the last head; attention comes first, where the stream is the layer's input.
    return seen[producer].input if producer in seen else hidden


def _written(model: nn.Module, group: Group, seen: Mapping[str, Passage]) -> Tensor:
    """What a sublayer adds to the residual stream."""
    output = seen[group.consumer].output
    return output if group.scale is None else output * attribute(model, group.scale)


def _paths(model: nn.Module, groups: Sequence[Group]) -> list[str]:
    """The modules to observe: consumers, and the first producers as far as they are still there."""
    wanted = [path for group in groups for path in (group.consumer, group.producers[0].path, group.stream) if path]
    return [path for path in wanted if find_module(model, path) is not None]


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path, `None` if it went with the units it served."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None


def dense_pass(
    model: nn.Module,
    batch: Batch,
    groups: Sequence[Group],
    *,
    rows: int,
    temperature: float,
    generator: torch.Generator,
) -> Start:
    """Run the dense model forward, and backward from a random functional of its logits.

    Args:
        model: the dense model, frozen.
        batch: its inputs.
        groups: its groups.
        rows: token positions to take logits at, where every token has some.
        temperature: see `probe_output`.
        generator: source of rows and functional, in this order.
    """
    real = token_masks(model, batch)
    compared = draw_rows(real, rows, generator)
    with (
        differentiable(model, groups),
        called(model) as calls,
        observed(model, [group.consumer for group in groups]) as seen,
    ):
        output = compared_output(model, batch, compared)
        slopes = None
        written = [seen[group.consumer].output for group in groups]
        if output is not None and output.of_head:
            functional = probe_output(output.values, temperature, output.kind, generator)
            slopes = gradients(functional, written)
    return calls.start(real, groups, written, slopes)


class Calls:
    """The input of every stack's first layer and how every layer is called in one forward pass; see `called`."""

    def __init__(self) -> None:
        self.hidden: dict[str, Tensor] = {}
        self.by_layer: dict[str, _Call] = {}

    def start(
        self,
        real: TokenMasks,
        groups: Sequence[Group],
        outputs: Sequence[Tensor],
        gradients: Sequence[Tensor] | None,
    ) -> Start:
        """What a walk starts from.

        Args:
            real: the real tokens of the batch that ran.
            groups: the model's groups.
            outputs: of each group's consumer, shape (batch, tokens, channels), or the windows of one sample after
                those of another.
            gradients: of a random functional of the logits by each of these outputs; `None` without a head: then every
                token counts the same.
        """
        weights = {}
        for group, output, gradient in zip(groups, outputs, gradients or [None] * len(groups), strict=True):
            valid = _real(group, real)
            if valid is None:  # a sample's windows follow each other
                samples = len(real[stack_of(group.layer)])
                valid = torch.ones(output.shape[:2], dtype=torch.bool).view(samples, -1)
            weight = valid.float() if gradient is None else token_weights(gradient.reshape(*valid.shape, -1), valid)
            weights[group.key] = weight.view(output.shape[:2])
        return Start(real, self.hidden, self.by_layer, weights)

    def hook(self, name: str) -> Callable[..., None]:
        """A forward pre-hook for the layer of this name."""

        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if args:
                hidden, args = args[0], args[1:]
            else:
                kwargs = dict(kwargs)
                hidden = kwargs.pop("hidden_states")
            self.by_layer[name] = _Call(args, kwargs)
            self.hidden.setdefault(stack_of(name), hidden)

        return record


@contextmanager
def called(model: nn.Module) -> Iterator[Calls]:
    """Collect every stack's first input and how every layer is called in the one forward pass inside."""
    calls = Calls()
    with ExitStack() as stack:
        for name, path in find_layers(model).items():
            # First of the hooks: a layer pruned before may slice what it is called with.
            layer = model.get_submodule(path)
            handle = layer.register_forward_pre_hook(calls.hook(name), with_kwargs=True, prepend=True)
            stack.callback(handle.remove)
        yield calls
