"""How far a pruned model's output is from the dense one's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..architectures.find import find_layers
from ..architectures.group import stack_of
from ..inputs.tokens import token_masks, token_rows
from ..passes.hooks import recorded
from ..passes.losses import REAL, OutputKind, output_distance
from ..passes.outputs import Output, compared_output
from ..passes.trajectory import hidden_states, layer_rows
from ..running.batch import Batch, samples_in
from ..running.freezing import frozen
from ..running.processes import add_up, my_share, process_count


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
    # Fewer batches than processes are not worth sharing: everybody runs them all.
    shared = len(batches) >= process_count()
    sums = [_Sums() for _ in pruned]
    with ExitStack() as stack:
        for model in (dense, *pruned):
            stack.enter_context(frozen(model))
        for index in my_share(len(batches)) if shared else range(len(batches)):
            teacher = _output(dense, batches[index])
            for model, each in zip(pruned, sums, strict=True):
                student = _output(model, batches[index])
                each.add(student.values.float(), teacher.values.float().to(student.values.device), teacher.kind)
    if shared:
        for each in sums:
            each.add_up()
    samples = sum(map(samples_in, batches))
    return [Divergence(each.distance(), each.agreement(), samples, held_out) for each in sums]


class _Sums:
    """Running sums over outputs, float64: their number, their distance, and what their kind needs for the agreement."""

    def __init__(self) -> None:
        self.kind: OutputKind | None = None
        self.sums: list[Tensor] = []

    def add(self, student: Tensor, teacher: Tensor, kind: OutputKind) -> None:
        self.kind = kind
        distance = output_distance(student, teacher, 1.0, kind) * len(teacher)
        sums = [torch.stack([distance.new_tensor(len(teacher)), distance]).double(), *kind.sums(student, teacher)]
        self.sums = [one + other for one, other in zip(self.sums, sums, strict=True)] if self.sums else sums

    def add_up(self) -> None:
        """Add the other processes' sums."""
        add_up(*self.sums)

    def distance(self) -> float:
        return float(self.sums[0][1] / self.sums[0][0])

    def agreement(self) -> float | None:
        return self.kind.agreement(float(self.sums[0][0]), self.sums[1:])


def _output(model: nn.Module, batch: Batch) -> Output:
    real = token_masks(model, batch)
    rows = {stack: token_rows(mask) for stack, mask in real.items()}
    with recorded(model, dict([list(find_layers(model).items())[-1]])) as last:
        output = compared_output(model, batch, rows)
    if output is not None and output.of_head:
        return output
    ((layer, hidden),) = last.items()
    hidden, stack = hidden_states(hidden), stack_of(layer)
    return Output(hidden.flatten(0, 1)[layer_rows(rows[stack], hidden, real[stack].shape[1])], REAL, of_head=False)
