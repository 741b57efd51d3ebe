"""Starts of walks: what the dense model says about a calibration batch, from one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures.group import Group, Groups, consumers_by_path, stack_of
from ..comparing.losses import probe_output
from ..discovery.next_tokens import predicts_next_token
from ..editing.masking import differentiable, gradients
from ..inputs.tokens import TokenMasks
from ..running.batch import Batch, samples_in
from ..running.linears import rows_written
from ..running.processes import my_part, my_share, process_count, process_index
from ..stages.tensor_files import below, prefixed
from .hooks import Passage, observed, recorded
from .outputs import Output, compared_output
from .token_weights import token_weights
from .trajectory import Rows, draw_rows


@dataclass(frozen=True)
class Start:
    """What the dense model says about a batch, whatever is pruned; see `dense_pass`.

    Args:
        batch: the batch.
        real: its real tokens.
        weights: path of every consumer -> weight of each row that it writes (`rows_written`), of the shape of that
            without channels: (batch, tokens) or, where the consumer sees windows, (batch * windows, tokens).
        seed: seed of the draw of places that convolutions are refitted at.
    """

    batch: Batch
    real: TokenMasks
    weights: dict[str, Tensor]
    seed: int = 0


def tensors_of(starts: Sequence[Start | None]) -> dict[str, Tensor]:
    """What is particular to starts, as tensors by name, for `starts_of`."""
    found = {}
    for index, start in enumerate(starts):
        if start is not None:
            found[f"{index}/seed"] = torch.tensor(start.seed)
            found |= prefixed(f"{index}/weights/", start.weights)
    return found


def starts_of(saved: Mapping[str, Tensor], batches: Sequence[Batch], real: Sequence[TokenMasks]) -> list[Start | None]:
    """The starts that `tensors_of` was given, for the same batches with the same real tokens."""
    starts: list[Start | None] = [None] * len(batches)
    by_batch: dict[int, dict[str, Tensor]] = {}
    for name, tensor in saved.items():
        index, _, rest = name.partition("/")
        by_batch.setdefault(int(index), {})[rest] = tensor
    for index, found in by_batch.items():
        starts[index] = Start(batches[index], real[index], below("weights/", found), int(found["seed"]))
    return starts


def shared_out(starts: Sequence[Start | None], by_samples: bool = True) -> list[Start | None]:
    """What this process works on, of starts that all processes have; `None` in the place of what others do.

    A start of which there is not one for each process is shared out by its samples: of few starts, some processes would
    have twice as many as others.

    Args:
        starts: from `dense_passes`.
        by_samples: whether it may be.
    """
    count = process_count()
    whole = len(starts) // count * count
    mine = my_share(whole)
    shared = [start if place in mine else None for place, start in enumerate(starts[:whole])]
    for place, start in enumerate(starts[whole:]):
        if start is None or not by_samples or not _has_samples(start):
            shared.append(start if place == process_index() else None)
            continue
        samples = my_part(samples_in(start.batch))
        shared.append(_samples_of(start, samples) if samples.start < samples.stop else None)
    return shared


def _has_samples(start: Start) -> bool:
    """Whether all that is known of a batch is known sample by sample."""
    count = samples_in(start.batch)
    parts = [*start.batch.values(), *start.real.values()]
    return all(each.dim() and len(each) == count for each in parts) and not any(
        len(weight) % count for weight in start.weights.values()
    )


def _samples_of(start: Start, samples: slice) -> Start:
    """The start of some of the samples of a batch."""
    count = samples_in(start.batch)
    weights = {}
    for path, weight in start.weights.items():
        windows = len(weight) // count  # those of a sample follow each other
        weights[path] = weight[samples.start * windows : samples.stop * windows]
    batch, real = ({name: value[samples] for name, value in each.items()} for each in (start.batch, start.real))
    return replace(start, batch=batch, real=real, weights=weights)


def real_rows(group: Group, source: Tensor, real: TokenMasks) -> Tensor | None:
    """Which rows of a group's inputs are tokens: a boolean mask of the shape of `source` without its channels.

    Args:
        group: the group.
        source: what its producers read, shape (batch, tokens, channels), or (batch * windows, tokens, channels).
        real: the batch's real tokens.

    Returns:
        The mask, `None` where all rows are tokens: padding is none, and neither is what fills up windows.
    """
    return source.any(-1) if group.residual.windowed else real_tokens(group, real)


def real_tokens(group: Group, real: TokenMasks) -> Tensor | None:
    """The real tokens of the group's stack; `None` where all are, as a layer may then have fewer (stages, merging)."""
    mask = real[stack_of(group.layer)]
    return None if mask.all() else mask


@dataclass(frozen=True)
class DensePass:
    """What one forward pass of the dense model returned on its way, with its graph; see `run_dense`.

    Args:
        model: the model.
        groups: its groups.
        batch: the batch that ran.
        real: its real tokens.
        rows: the token positions that are compared.
        seen: path -> passage of every consumer, and of the first producer of every group.
        layers: layer -> what it returned.
        output: what L_KD compares; `None` where there is nothing.
    """

    model: nn.Module
    groups: Groups
    batch: Batch
    real: TokenMasks
    rows: Rows
    seen: Mapping[str, Passage]
    layers: Mapping[str, Any]
    output: Output | None

    def written(self) -> list[Tensor]:
        """What each consumer wrote, in order of `consumers_by_path`."""
        return [self.seen[path].output for path in consumers_by_path(self.groups)]

    def start(self, gradients: Sequence[Tensor] | None, generator: torch.Generator) -> Start:
        """What a walk starts from.

        Args:
            gradients: gradient of a random functional of the logits by each tensor of `written`. They are not used
                without a head, or by a language model, of which each token is an output: then all count the same.
            generator: source of the seed of places.
        """
        if self.output is None or not weighs_tokens(self.model, self.output):
            gradients = None
        weights = {}
        consumers = consumers_by_path(self.groups)
        for (path, (group, _)), written, gradient in zip(
            consumers.items(), self.written(), gradients or [None] * len(consumers), strict=True
        ):
            consumer, valid = self.model.get_submodule(path), real_tokens(group, self.real)
            shape = rows_written(consumer, written).shape[:-1]
            if valid is None:  # a sample's windows follow each other
                valid = torch.ones(shape, dtype=torch.bool).view(len(self.real[stack_of(group.layer)]), -1)
            weight = valid.float()
            if gradient is not None:
                weight = token_weights(rows_written(consumer, gradient).reshape(*valid.shape, -1), valid)
            weights[path] = weight.view(shape)
        return Start(self.batch, self.real, weights, int(torch.randint(2**31, (), generator=generator)))


def weighs_tokens(model: nn.Module, output: Output) -> bool:
    """Whether some tokens matter more to the output than others; docs/source/experiments.mdx shows what it brings."""
    return output.of_head and not predicts_next_token(model)


def run_dense(
    model: nn.Module,
    groups: Groups,
    batch: Batch,
    real: TokenMasks,
    *,
    rows: int,
    generator: torch.Generator,
) -> DensePass:
    """Run the dense model forward, with a graph from the first groups on.

    Args:
        model: the dense model, frozen.
        groups: its groups.
        batch: its inputs.
        real: their real tokens.
        rows: token positions to compare.
        generator: source of the rows; the functional of the output must be the next draw from it.
    """
    compared = draw_rows(real, rows, generator)
    paths = [each.path for group in groups for each in (*group.consumers, *group.producers[:1])]
    with (
        differentiable(model, groups),
        observed(model, paths, apart=True) as seen,
        recorded(model, groups.layers) as layers,
    ):
        output = compared_output(model, batch, compared)
    return DensePass(model, groups, batch, real, compared, seen, layers, output)


def dense_pass(
    model: nn.Module,
    groups: Groups,
    batch: Batch,
    real: TokenMasks,
    *,
    rows: int,
    temperature: float,
    generator: torch.Generator,
) -> Start:
    """Run the dense model forward, and backward from a random functional of its logits.

    Args:
        model: the dense model, frozen.
        groups: its groups.
        batch: its inputs.
        real: their real tokens.
        rows: token positions to take logits at, if every token has its own.
        temperature: see `probe_output`.
        generator: source of the rows and of the functional, in this order.
    """
    ran = run_dense(model, groups, batch, real, rows=rows, generator=generator)
    if ran.output is None or not weighs_tokens(model, ran.output):
        return ran.start(None, generator)
    functional = probe_output(ran.output.values, temperature, ran.output.kind, generator)
    keys = [group.key for group, _ in consumers_by_path(groups).values()]
    return ran.start(gradients(functional, ran.written(), keys), generator)
