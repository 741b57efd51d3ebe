"""How far a pruned model's output is from the dense one's."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from ..architectures.group import Groups, stack_of
from ..figures import Divergence
from ..inputs.tokens import TokenMasks, token_rows
from ..passes.calibration import Calibration
from ..passes.hooks import recorded
from ..passes.losses import BINARY, CATEGORICAL, REAL, output_distance
from ..passes.outputs import Output, compared_output
from ..passes.trajectory import hidden_states, layer_rows
from ..running.batch import Batch
from ..running.freezing import frozen
from ..running.processes import add_up, my_share, process_count

_ROUNDING = 1e-12  # of the mean square: what float32 may leave of the variance of constant outputs


@torch.no_grad()
def measure_divergence(
    dense: nn.Module, pruned: Sequence[nn.Module], groups: Groups, calibration: Calibration, held_out: bool = True
) -> list[Divergence]:
    """Compare logits, or without a head the last layer's hidden states, of each pruned model; batch by batch.

    Args:
        dense: the model before pruning.
        pruned: models after it.
        groups: groups of the dense model.
        calibration: what to run, on the models' device.
        held_out: see `Divergence`.
    """
    # Fewer batches than processes are not worth sharing: everybody runs them all.
    shared = len(calibration) >= process_count()
    sums = [_Sums() for _ in pruned]
    with ExitStack() as stack:
        for model in (dense, *pruned):
            stack.enter_context(frozen(model))
        for index in my_share(len(calibration)) if shared else range(len(calibration)):
            given = groups, calibration.batches[index], calibration.real[index]
            teacher = _output(dense, *given)
            for model, each in zip(pruned, sums, strict=True):
                student = _output(model, *given)
                each.add(student.values.float(), teacher.values.float().to(student.values.device), teacher.kind)
    if shared:
        for each in sums:
            each.add_up()
    return [Divergence(each.distance(), each.agreement(), calibration.samples, held_out) for each in sums]


class _Sums:
    """Running sums over outputs, float64: their number, distance, how many agree; of real ones error and squares."""

    def __init__(self) -> None:
        self.sums: Tensor | None = None  # outputs, distance, agreeing, squared error, squares
        self.total: Tensor | None = None  # of the dense model's real outputs, shape (channels,)
        self.real = False

    def add(self, student: Tensor, teacher: Tensor, kind: str) -> None:
        self.real = kind == REAL
        distance = output_distance(student, teacher, 1.0, kind) * len(teacher)
        error = squares = total = distance.new_zeros(())
        if self.real:  # of a vocabulary's logits, these would be large copies for nothing
            error, squares = (student - teacher).square().sum(), teacher.double().square().sum()
            total = teacher.double().sum(0)
        sums = [distance.new_tensor(len(teacher)), distance, _agreeing(student, teacher, kind), error, squares]
        sums, total = torch.stack([each.double() for each in sums]), total.double()
        self.sums = sums if self.sums is None else self.sums + sums
        self.total = total if self.total is None else self.total + total

    def add_up(self) -> None:
        """Add the other processes' sums."""
        add_up(self.sums, self.total)

    def distance(self) -> float:
        return float(self.sums[1] / self.sums[0])

    def agreement(self) -> float | None:
        outputs, _, agreeing, error, squares = self.sums.tolist()
        if not self.real:
            return agreeing / outputs
        variance = squares - float(self.total.square().sum()) / outputs
        return None if variance <= _ROUNDING * squares else max(0.0, 1 - error / variance)


def _agreeing(student: Tensor, teacher: Tensor, kind: str) -> Tensor:
    """How many outputs have the same class (of sigmoids: the share of classes, summed); 0 for numbers."""
    if kind == CATEGORICAL:
        return (student.argmax(-1) == teacher.argmax(-1)).sum()
    if kind == BINARY:
        return ((student > 0) == (teacher > 0)).float().mean(-1).sum()
    return student.new_zeros(())


def _output(model: nn.Module, groups: Groups, batch: Batch, real: TokenMasks) -> Output:
    rows = {stack: token_rows(mask) for stack, mask in real.items()}
    with recorded(model, dict([list(groups.layers.items())[-1]])) as last:
        output = compared_output(model, batch, rows)
    if output is not None and output.of_head:
        return output
    ((layer, hidden),) = last.items()
    hidden, stack = hidden_states(hidden), stack_of(layer)
    return Output(hidden.flatten(0, 1)[layer_rows(rows[stack], hidden, real[stack].shape[1])], REAL, of_head=False)
