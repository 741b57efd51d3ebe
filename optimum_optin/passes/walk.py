"""Walks: a calibration batch on its way through the dense and the pruned model, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ..architectures.group import HEADS, Group, attribute
from .hooks import Passage, observed
from .starts import Start, real_tokens

Rows = tuple[Tensor, Tensor, Tensor]
"""Inputs and errors of a regression, of shape (valid tokens, features), and a weight per row."""


class Walk:
    """One calibration batch on its way through a stack of the dense model.

    Args:
        start: what the dense model says about the batch.
        stack: name of the stack.

    Attributes:
        call: the arguments of the current layer.
        hidden: its output, shape (batch, tokens, channels).
        sources: key of each of its groups -> what the producers read, shape (batch, tokens, channels).
        targets: key of each of its groups -> what the refit aims at, of the same shape: the residual stream after the
            sublayer or, for windows and normalised outputs, the sublayer's output alone.
    """

    def __init__(self, start: Start, stack: str):
        self.start = start
        self.hidden = start.hidden[stack]

    def enter(self, name: str, dense: nn.Module, path: str, groups: list[Group]) -> None:
        """Run the dense layer; keep what each sublayer reads, and the residual stream after it."""
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
        """What the group's producers read in the pruned model, and by how much it falls short of the dense model's."""
        producer = group.producers[0].path
        with observed(pruned, [producer], stop_after=producer) as seen:
            self._run(pruned, path)
        read = seen[producer].input
        weights = self._weights(group)
        if group.role == HEADS:  # attention reads every token on behalf of others, so all weigh the same
            weights = (weights > 0).float()
        return self._rows(group, read, self.dense.sources[group.key] - read, weights)

    def output_errors(self, pruned: nn.Module, path: str, group: Group, earlier: list[Group]) -> Rows:
        """What the group's consumer reads in the pruned model, and how far the stream after it falls short."""
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
        if group.residual.windowed:  # windows are filled up with zeros, whose output is dropped
            weights = weights * self.dense.sources[group.key].any(-1).to(weights)
        return weights

    def _rows(self, group: Group, inputs: Tensor, errors: Tensor, weights: Tensor) -> Rows:
        rows = inputs, errors, weights.to(inputs.device)
        real = real_tokens(group, self.dense.start.real)
        if real is None:
            return tuple(each.flatten(0, 1) for each in rows)
        return tuple(each[real.to(inputs.device)] for each in rows)


def _residual(
    model: nn.Module, hidden: Tensor, earlier: list[Group], group: Group, seen: Mapping[str, Passage]
) -> Tensor:
    """The residual stream that a sublayer's output is added to."""
    if (
        group.residual.windowed or group.residual.normed_output
    ):  # in another order or scale: the output alone is the target
        return hidden.new_zeros(())
    if group.residual.stream:
        return seen[group.residual.stream].input
    if group.residual.pre_norm:
        return sum((_written(model, before, seen) for before in earlier), hidden)
    producer = group.producers[0].path
    # Producers go with the last head; attention comes first, where the stream is the layer's input.
    return seen[producer].input if producer in seen else hidden


def _written(model: nn.Module, group: Group, seen: Mapping[str, Passage]) -> Tensor:
    """What a sublayer adds to the residual stream."""
    output = seen[group.consumer].output
    return output if group.residual.scale is None else output * attribute(model, group.residual.scale)


def _paths(model: nn.Module, groups: Sequence[Group]) -> list[str]:
    """The modules to observe, as far as they are still there: consumers, first producers and residual streams."""
    wanted = [
        path for group in groups for path in (group.consumer, group.producers[0].path, group.residual.stream) if path
    ]
    return [path for path in wanted if find_module(model, path) is not None]


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; `None` if it was removed with its units."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
