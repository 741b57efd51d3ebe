"""Divergence: how far a pruned model's output is from the dense model's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..architectures.group import Groups, stack_of
from ..comparing.losses import REAL, OutputKind, output_distance
from ..figures import Divergence
from ..inputs.tokens import TokenMasks, token_rows
from ..passes.calibration import Calibration
from ..passes.half_precision import float_products
from ..passes.hooks import recorded
from ..passes.outputs import Output, compared_output
from ..passes.trajectory import hidden_states, layer_rows
from ..running.batch import Batch
from ..running.feature_maps import as_tokens
from ..running.freezing import frozen
from ..running.processes import add_up, my_share, process_count

_KEPT = 2**23  # numbers of the dense model's outputs that are kept: 32 MB


@torch.no_grad()
def measure_divergence(
    dense: nn.Module, pruned: Sequence[nn.Module], groups: Groups, calibration: Calibration, held_out: bool = True
) -> list[Divergence]:
    """Compare each pruned model's logits (without a head, the last layer's hidden states) with the dense model's.

    Args:
        dense: the model before pruning.
        pruned: models that were made from it.
        groups: groups of the dense model.
        calibration: batches to run, on the models' device; of the dense model, what was kept of earlier comparisons.
        held_out: see `Divergence`.
    """
    # Fewer batches than processes are not worth sharing: every process runs them all.
    shared = len(calibration) >= process_count()
    sums = [_Sums() for _ in pruned]
    with ExitStack() as stack:
        for model in (dense, *pruned):
            stack.enter_context(frozen(model))
        stack.enter_context(float_products(dense))
        for index in my_share(len(calibration)) if shared else range(len(calibration)):
            given = groups, calibration.batches[index], calibration.real[index]
            teacher = _dense_output(dense, *given, known=calibration.outputs, index=index)
            for model, each in zip(pruned, sums, strict=True):
                student = _output(model, *given)
                each.add(student.values, teacher.values.to(student.values.device), teacher.kind)
    if shared:
        for each in sums:
            each.add_up()
    return [Divergence(each.distance(), each.agreement(), calibration.samples, held_out) for each in sums]


class _Sums:
    """Running sums over outputs, float64: their number, their distance, and what the agreement needs."""

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


def _dense_output(
    dense: nn.Module, groups: Groups, batch: Batch, real: TokenMasks, *, known: dict[int, Output], index: int
) -> Output:
    """The output of the dense model, which is kept for later comparisons on the same batches if it is small."""
    if index in known:
        return known[index]
    output = _output(dense, groups, batch, real)
    if output.values.numel() + sum(each.values.numel() for each in known.values()) <= _KEPT:
        known[index] = output
    return output


def _output(model: nn.Module, groups: Groups, batch: Batch, real: TokenMasks) -> Output:
    rows = {stack: token_rows(mask) for stack, mask in real.items()}
    with recorded(model, dict([list(groups.layers.items())[-1]])) as last:
        output = compared_output(model, batch, rows)
    if output is not None and output.of_head:
        return output
    ((layer, hidden),) = last.items()
    hidden, stack = as_tokens(hidden_states(hidden), layer in groups.maps), stack_of(layer)
    return Output(hidden.flatten(0, 1)[layer_rows(rows[stack], hidden, real[stack].shape[1])], REAL, of_head=False)
