"""Compensation: refit what is left to do the work of what was removed, in closed form and without labels.

Layer by layer, on inputs that have already passed the pruned layers below, every consumer is refitted by ridge
regression towards the dense model's output of its sublayer, the error that the residual stream carries included.
Tokens weigh as much as they matter to the model's output (`sensitivity.py`). The change is folded into the consumer's
weight and bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging
from transformers.utils.logging import tqdm

from .architectures import find_groups, find_layers
from .groups import Batch, Group, token_mask
from .masking import differentiable, frozen
from .ridge import Regression, solve_ridge
from .sensitivity import token_weights
from .trajectory import Passage, compared_output, hidden_states, observed

logger = logging.get_logger(__name__)

_HELD_OUT = 5  # every fifth batch (of a single batch, token) chooses the regularisation, and whether to refit at all


@torch.inference_mode(False)
@torch.no_grad()
def compensate(dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch], seed: int = 0) -> None:
    """Refit the consumers of `pruned`, in place; returns nothing.

    Besides the models, memory holds the calibration data's hidden states at one layer of either model with the
    targets of that layer's sublayers, a weight per token and sublayer, and three Gram matrices of one consumer.

    Args:
        dense: the model before pruning; unchanged.
        pruned: the rewritten model.
        batches: calibration batches on the models' device.
        seed: seed of the probes that weigh the tokens.
    """
    groups = find_groups(dense)
    generator = torch.Generator().manual_seed(seed)
    with frozen(dense), frozen(pruned):
        walks = [
            _Walk(batch, *_dense_pass(dense, batch, groups, generator))
            for batch in tqdm(batches, desc="token weights", unit="batch")
        ]
        for name, path in tqdm(find_layers(dense).items(), desc="compensation", unit="layer"):
            layer_groups = [group for group in groups if group.layer == name]
            for walk in walks:
                walk.enter(name, dense, path, layer_groups)
            for index, group in enumerate(layer_groups):
                _refit(pruned, path, group, layer_groups[:index], walks)
            for walk in walks:
                walk.leave(pruned.get_submodule(path))


def _refit(pruned: nn.Module, path: str, group: Group, earlier: list[Group], walks: list[_Walk]) -> None:
    consumer = pruned.get_submodule(group.consumer)
    fit, held_out = (Regression(consumer.in_features, consumer.out_features, consumer.weight.device) for _ in range(2))
    for index, walk in enumerate(walks):
        rows = walk.errors(pruned, path, group, earlier)
        if len(walks) == 1:
            is_held_out = torch.arange(len(rows[0])) % _HELD_OUT == 0
            held_out.add(*(each[is_held_out] for each in rows))
            fit.add(*(each[~is_held_out] for each in rows))
        else:
            (held_out if index % _HELD_OUT == 0 else fit).add(*rows)
    tokens = fit.count + held_out.count
    if tokens < consumer.in_features:
        logger.warning_once(
            f"calibration data have {tokens} tokens, fewer than the {consumer.in_features} inputs of a consumer: "
            "the refit may do little; give more samples."
        )
    weight, bias = solve_ridge(fit, held_out, intercept=consumer.bias is not None)
    consumer.weight += weight.to(consumer.weight)
    if consumer.bias is not None:
        consumer.bias += bias.to(consumer.bias)


@dataclass
class _Call:
    """How a layer was called, less its hidden states."""

    args: tuple
    kwargs: dict[str, Any]

    def run(self, layer: nn.Module, hidden: Tensor) -> Tensor:
        return hidden_states(layer(hidden, *self.args, **self.kwargs))


class _Walk:
    """One calibration batch on its way through both models, layer by layer.

    Args:
        batch: the batch.
        hidden: the first layer's input, shape (batch, tokens, channels).
        calls: every layer's call.
        weights: group key -> weight of every token, shape (batch, tokens).
    """

    def __init__(self, batch: Batch, hidden: Tensor, calls: dict[str, _Call], weights: dict[str, Tensor]):
        self.valid = token_mask(batch)
        self.dense = self.pruned = hidden
        self.calls = calls
        self.weights = weights

    def enter(self, name: str, dense: nn.Module, path: str, groups: list[Group]) -> None:
        """Run the dense layer; keep what each sublayer adds to its residual stream."""
        self.call = self.calls[name]
        with observed(dense, _paths(dense, groups)) as seen:
            output = self.call.run(dense.get_submodule(path), self.dense)
        self.targets = {
            group.key: _residual(self.dense, groups[:index], group, seen) + seen[group.consumer].output
            for index, group in enumerate(groups)
        }
        self.dense = output

    def errors(self, pruned: nn.Module, path: str, group: Group, earlier: list[Group]) -> tuple[Tensor, ...]:
        """Inputs of the pruned consumer and what its output lacks, of shape (valid tokens, features); weights."""
        with observed(pruned, _paths(pruned, [*earlier, group]), stop_after=group.consumer) as seen:
            self.call.run(pruned.get_submodule(path), self.pruned)
        consumer = seen[group.consumer]
        lacking = self.targets[group.key] - _residual(self.pruned, earlier, group, seen) - consumer.output
        return consumer.input[self.valid], lacking[self.valid], self.weights[group.key][self.valid]

    def leave(self, layer: nn.Module) -> None:
        """Run the refitted pruned layer."""
        self.pruned = self.call.run(layer, self.pruned)


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


def _dense_pass(
    model: nn.Module, batch: Batch, groups: Sequence[Group], generator: torch.Generator
) -> tuple[Tensor, dict[str, _Call], dict[str, Tensor]]:
    """What a walk starts from: the first layer's input, how every layer is called, and the tokens' weights."""
    valid = token_mask(batch)
    with (
        differentiable(model, groups[0]),
        _called(model) as (first, calls),
        observed(model, [group.consumer for group in groups]) as seen,
    ):
        output = compared_output(model, batch, valid.flatten().nonzero().flatten())
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
    return first[0], calls, weights


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
