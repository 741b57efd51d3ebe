"""A calibration batch on its way through the dense and the pruned model, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import find_layers
from .groups import HEADS, Batch, Group, token_mask, token_rows
from .masking import differentiable
from .sensitivity import token_weights
from .trajectory import Passage, compared_output, hidden_states, observed

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
        valid: the real tokens, shape (batch, tokens).
        hidden: the first layer's input, shape (batch, tokens, channels).
        calls: how every layer is called, by name.
        weights: group key -> weight of every token, shape (batch, tokens).
    """

    valid: Tensor
    hidden: Tensor
    calls: dict[str, _Call]
    weights: dict[str, Tensor]


class Walk:
    """One calibration batch and its hidden states at the current layer of either model.

    Args:
        start: what the dense model says about the batch.
    """

    def __init__(self, start: Start):
        self.valid, self.calls, self.weights = start.valid, start.calls, start.weights
        self.dense = self.pruned = start.hidden

    def enter(self, name: str, dense: nn.Module, path: str, groups: list[Group]) -> None:
        """Run the dense layer; keep what each sublayer reads and what it makes of its residual stream."""
        self.call = self.calls[name]
        with observed(dense, _paths(dense, groups)) as seen:
            output = self.call.run(dense.get_submodule(path), self.dense)
        self.sources = {
            group.key: seen[group.producers[0].path].input for group in groups if group.producers[0].path in seen
        }
        self.targets = {
            group.key: _residual(self.dense, groups[:index], group, seen) + seen[group.consumer].output
            for index, group in enumerate(groups)
        }
        self.dense = output

    def input_errors(self, pruned: nn.Module, path: str, group: Group) -> Rows:
        """What the group's producers read in the pruned model, and what that lacks."""
        producer = group.producers[0].path
        with observed(pruned, [producer], stop_after=producer) as seen:
            self.call.run(pruned.get_submodule(path), self.pruned)
        read = seen[producer].input
        # Attention reads every token for the sake of others: the weights at its output do not apply.
        weights = self.valid.float() if group.role == HEADS else self.weights[group.key]
        return self._rows(read, self.sources[group.key] - read, weights)

    def output_errors(self, pruned: nn.Module, path: str, group: Group, earlier: list[Group]) -> Rows:
        """What the group's consumer reads in the pruned model, and what its output lacks."""
        with observed(pruned, _paths(pruned, [*earlier, group]), stop_after=group.consumer) as seen:
            self.call.run(pruned.get_submodule(path), self.pruned)
        consumer = seen[group.consumer]
        lacking = self.targets[group.key] - _residual(self.pruned, earlier, group, seen) - consumer.output
        return self._rows(consumer.input, lacking, self.weights[group.key])

    def leave(self, layer: nn.Module) -> None:
        """Run the refitted pruned layer."""
        self.pruned = self.call.run(layer, self.pruned)

    def _rows(self, inputs: Tensor, errors: Tensor, weights: Tensor) -> Rows:
        return inputs[self.valid], errors[self.valid], weights[self.valid]


def _residual(hidden: Tensor, earlier: list[Group], group: Group, seen: Mapping[str, Passage]) -> Tensor:
    """The residual stream that a sublayer's output is added to."""
    if group.pre_norm:
        return sum((seen[before.consumer].output for before in earlier), hidden)
    producer = group.producers[0].path
    # Producers go with the last head; attention comes first, where the stream is the layer's input.
    return seen[producer].input if producer in seen else hidden


def _paths(model: nn.Module, groups: Sequence[Group]) -> list[str]:
    """The modules to observe: consumers, and the first producers as far as they are still there."""
    modules = dict(model.named_modules())
    wanted = [path for group in groups for path in (group.consumer, group.producers[0].path)]
    return [path for path in wanted if path in modules]


def dense_pass(model: nn.Module, batch: Batch, groups: Sequence[Group], generator: torch.Generator) -> Start:
    """Run the dense model forward, and backward from a random functional of its logits.

    Args:
        model: the dense model, frozen.
        batch: its inputs.
        groups: its groups.
        generator: source of the functional.
    """
    valid = token_mask(batch)
    with (
        differentiable(model, groups[0]),
        _called(model) as (first, calls),
        observed(model, [group.consumer for group in groups]) as seen,
    ):
        output = compared_output(model, batch, token_rows(batch))
        if output is None or not output.of_head:
            weights = {group.key: valid.float() for group in groups}
        else:
            probe = torch.randn(output.values.shape, generator=generator).to(output.values)
            gradients = torch.autograd.grad(
                (probe * output.values).sum(), [seen[group.consumer].output for group in groups]
            )
            weights = {
                group.key: token_weights(gradient, valid) for group, gradient in zip(groups, gradients, strict=True)
            }
    return Start(valid, first[0], calls, weights)


@contextmanager
def _called(model: nn.Module) -> Iterator[tuple[list[Tensor], dict[str, _Call]]]:
    """Collect the first layer's input and how every layer is called in the forward pass inside."""
    calls: dict[str, _Call] = {}
    first: list[Tensor] = []

    def hook(name: str):
        def record(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            if args:
                hidden, args = args[0], args[1:]
            else:
                kwargs = dict(kwargs)
                hidden = kwargs.pop("hidden_states")
            calls[name] = _Call(args, kwargs)
            if not first:
                first.append(hidden)

        return record

    with ExitStack() as stack:
        for name, path in find_layers(model).items():
            handle = model.get_submodule(path).register_forward_pre_hook(hook(name), with_kwargs=True)
            stack.callback(handle.remove)
        yield first, calls
