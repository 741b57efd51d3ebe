"""What the dense model says about a calibration batch, from one pass: where a walk starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.find import find_layers
from ..architectures.group import Group, stack_of
from ..editing.masking import differentiable, gradients
from ..inputs.tokens import TokenMasks, token_masks
from ..running.batch import Batch
from .hooks import observed
from .losses import probe_output
from .outputs import compared_output
from .token_weights import token_weights
from .trajectory import draw_rows, hidden_states


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


def real_rows(group: Group, source: Tensor, real: TokenMasks) -> Tensor | None:
    """Which rows of what a group's linears see are tokens, as a mask of its shape but for the features.

    Args:
        group: the group.
        source: what its producers read, shape (batch, tokens, channels), or windows of tokens one after another.
        real: the batch's real tokens.

    Returns:
        `None` where all are: padding stands in for no token, nor does what fills up windows.
    """
    return source.any(-1) if group.residual.windowed else real_tokens(group, real)


def real_tokens(group: Group, real: TokenMasks) -> Tensor | None:
    """The real tokens of the group's stack, `None` where all are: then a layer may have others in their place."""
    mask = real[stack_of(group.layer)]
    return None if mask.all() else mask


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
            valid = real_tokens(group, real)
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
