"""One sublayer at a time: what it gets in the pruned model, and what it should give according to the dense one.

What baselines of other papers share that prune or repair bottom-up. For encoders that normalise the sum of a sublayer
and its residual (BERT and its kin): there the input of the first producer is the residual.
"""

from contextlib import AbstractContextManager

import torch
from torch import Tensor

from optimum_optin.compensation.ridge import Regression
from optimum_optin.discovery.find import find_layers
from optimum_optin.passes.hooks import observed, replayed
from optimum_optin.running.batch import token_mask


@torch.no_grad()
def sublayer_outputs(model, groups, batches) -> list[dict[str, Tensor]]:
    """What every sublayer gives, residual included: for each batch, group key -> shape (real tokens, channels)."""
    outputs = []
    for batch in batches:
        with observed(model, [path for group in groups for path in _ends(group)]) as seen:
            model(**batch)
        outputs.append({group.key: _output(seen, group)[token_mask(batch)] for group in groups})
    return outputs


class Walk:
    """Calibration batches on their way up a model; layers that were passed do not run again.

    Args:
        model: the model, `frozen`; it may change from the current layer on.
        batches: its inputs.
    """

    def __init__(self, model, batches):
        self.model, self.batches = model, batches
        self.layers = find_layers(model)
        self.passed = [{} for _ in batches]

    @torch.no_grad()
    def move_to(self, layer: str) -> None:
        """Pass the layers before `layer`."""
        before = list(self.layers)[: list(self.layers).index(layer)]
        if not before or before[-1] in self.passed[0]:
            return
        last = self.layers[before[-1]]
        for index, batch in enumerate(self.batches):
            with self.resumed(index), observed(self.model, [last], stop_after=last) as seen:
                self.model(**batch)
            self.passed[index] = dict.fromkeys(before, seen[last].output)

    def resumed(self, index: int) -> AbstractContextManager:
        """Run the model on batch `index` from the current layer on."""
        return replayed(self.model, self.layers, self.passed[index])


@torch.no_grad()
def regression(walk: Walk, group, wanted: list[dict[str, Tensor]]) -> Regression:
    """Sums of a consumer's inputs in the pruned model and of what it should make of them, bias excluded.

    Args:
        walk: the pruned model at the group's layer; the group itself is not cut yet.
        group: the group.
        wanted: the dense model's `sublayer_outputs`.
    """
    consumer = walk.model.get_submodule(group.consumer)
    sums = Regression(consumer.in_features, consumer.out_features)
    for index, batch in enumerate(walk.batches):
        with walk.resumed(index), observed(walk.model, _ends(group), stop_after=group.consumer) as seen:
            walk.model(**batch)
        valid = token_mask(batch)
        inputs = seen[group.consumer].input[valid]
        given = _output(seen, group)[valid] - inputs @ consumer.weight.T  # residual and bias
        sums.add(inputs, wanted[index][group.key] - given)
    return sums


def _ends(group) -> list[str]:
    return [group.producers[0].path, group.consumer]


def _output(seen, group) -> Tensor:
    return seen[group.producers[0].path].input + seen[group.consumer].output


def solve_near(gram: Tensor, cross: Tensor, start: Tensor, strength: float = 1e-5) -> Tensor:
    """Least squares from the normal equations, x = gram^-1 cross, damped towards `start`.

    Args:
        gram: shape (inputs, inputs).
        cross: shape (inputs, outputs).
        start: shape (inputs, outputs).
        strength: of the damping, relative to the mean diagonal; the default only keeps the solve well-posed.
    """
    if len(gram) == 0:
        return start.double()
    pull = strength * gram.diagonal().mean() + 1e-12
    factor = torch.linalg.cholesky(gram + pull * torch.eye(len(gram), dtype=gram.dtype))
    return torch.cholesky_solve(cross + pull * start.double(), factor)


def columns_of(units: Tensor, width: int) -> Tensor:
    """Consumer columns of a mask of units."""
    return units.repeat_interleave(width)
