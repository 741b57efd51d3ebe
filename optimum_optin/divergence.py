"""How far a pruned model's output is from the dense one's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .architectures import find_layers
from .groups import Batch, token_rows
from .losses import BINARY, CATEGORICAL, REAL, output_distance
from .masking import frozen
from .trajectory import Output, compared_output, hidden_states, recorded


@dataclass(frozen=True)
class Divergence:
    """Distance of two models' outputs.

    Args:
        distance: L_KD, mean over outputs: KL divergence in nats for a classifier, squared error for numbers and
            hidden states.
        agreement: share of outputs with the same class; for numbers and hidden states the share of the dense
            model's variance that the pruned one explains, at least 0. `None` where there is no variance to explain.
        samples: how many samples it was measured on.
        held_out: whether the refit was kept from seeing them.
    """

    distance: float
    agreement: float | None
    samples: int
    held_out: bool


@torch.no_grad()
def measure_divergence(
    dense: nn.Module, pruned: Sequence[nn.Module], batches: Sequence[Batch], held_out: bool = True
) -> list[Divergence]:
    """Compare logits, or without a head the last layer's hidden states, of each pruned model; batch by batch.

    Args:
        dense: the model before pruning.
        pruned: models after it.
        batches: batches on the models' device.
        held_out: see `Divergence`.
    """
    sums = [_Sums() for _ in pruned]
    with ExitStack() as stack:
        for model in (dense, *pruned):
            stack.enter_context(frozen(model))
        for batch in batches:
            teacher = _output(dense, batch)
            for model, each in zip(pruned, sums, strict=True):
                each.add(_output(model, batch).values.float(), teacher.values.float(), teacher.kind)
    samples = sum(len(batch["input_ids"]) for batch in batches)
    return [Divergence(float(each.distance / each.outputs), each.agreement(), samples, held_out) for each in sums]


class _Sums:
    """Running sums over outputs."""

    def __init__(self) -> None:
        self.outputs = 0
        self.distance = self.same = self.error = self.squares = self.total = 0.0
        self.real = False

    def add(self, student: Tensor, teacher: Tensor, kind: str) -> None:
        self.outputs += len(teacher)
        self.distance += float(output_distance(student, teacher, 1.0, kind)) * len(teacher)
        if kind == CATEGORICAL:
            self.same += float((student.argmax(-1) == teacher.argmax(-1)).sum())
        elif kind == BINARY:
            self.same += float(((student > 0) == (teacher > 0)).float().mean(-1).sum())
        else:
            self.real = True
            self.error += float((student - teacher).square().sum())
            self.squares += float(teacher.double().square().sum())
            self.total = self.total + teacher.double().sum(0)

    def agreement(self) -> float | None:
        if not self.real:
            return self.same / self.outputs
        variance = self.squares - float(self.total.square().sum()) / self.outputs
        return None if variance <= 1e-9 * self.squares else max(0.0, 1 - self.error / variance)


def _output(model: nn.Module, batch: Batch) -> Output:
    rows = token_rows(batch)
    with recorded(model, dict([list(find_layers(model).items())[-1]])) as last:
        output = compared_output(model, batch, rows)
    if output is not None and output.of_head:
        return output
    (hidden,) = last.values()
    return Output(hidden_states(hidden).flatten(0, 1)[rows], REAL, of_head=False)
