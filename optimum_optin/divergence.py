"""How far a pruned model's output is from the dense one's, on samples that neither scores nor refits should know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .architectures import find_layers
from .groups import Batch, token_mask
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
            model's variance that the pruned one explains, at least 0.
        samples: how many samples it was measured on.
    """

    distance: float
    agreement: float
    samples: int


@torch.no_grad()
def measure_divergence(dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch]) -> Divergence:
    """Compare logits, or without a head the last layer's hidden states.

    Args:
        dense: the model before pruning.
        pruned: the model after it.
        batches: batches on the models' device.
    """
    with frozen(dense), frozen(pruned):
        outputs = [(_output(dense, batch), _output(pruned, batch)) for batch in batches]
    teacher = torch.cat([each.values.float() for each, _ in outputs])
    student = torch.cat([each.values.float() for _, each in outputs])
    kind = outputs[0][0].kind
    return Divergence(
        distance=float(output_distance(student, teacher, 1.0, kind)),
        agreement=_agreement(student, teacher, kind),
        samples=sum(len(batch["input_ids"]) for batch in batches),
    )


def _output(model: nn.Module, batch: Batch) -> Output:
    rows = token_mask(batch).flatten().nonzero().flatten()
    with recorded(model, dict([list(find_layers(model).items())[-1]])) as last:
        output = compared_output(model, batch, rows)
    if output is not None and output.of_head:
        return output
    (hidden,) = last.values()
    return Output(hidden_states(hidden).flatten(0, 1)[rows], REAL, of_head=False)


def _agreement(student: Tensor, teacher: Tensor, kind: str) -> float:
    if kind == CATEGORICAL:
        return float((student.argmax(-1) == teacher.argmax(-1)).float().mean())
    if kind == BINARY:
        return float(((student > 0) == (teacher > 0)).float().mean())
    variance = (teacher - teacher.mean(0)).square().sum().clamp_min(1e-12)
    return max(0.0, 1 - float((student - teacher).square().sum() / variance))
