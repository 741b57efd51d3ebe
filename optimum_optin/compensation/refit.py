"""Compensation: refit what is left to do the work of what was removed, in closed form and without labels.

It goes layer by layer, on inputs that have passed the pruned layers below, with two ridge regressions for each
sublayer. Its producers are corrected for what their input lacks, as far as the input itself tells. Its consumer is
refitted to the dense model's output of the sublayer, and to make up for the error that the residual stream carries.
Tokens weigh as much as they matter to the model's output (`token_weights.py`). Both changes are folded into weights and
biases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..architectures.group import Group, Groups, attribute, stack_of
from ..config import OptinConfig
from ..passes.calibration import Calibration, dense_passes
from ..passes.starts import Start
from ..passes.walk import PrunedWalk, Rows, Walk, find_module
from ..running.freezing import frozen
from ..running.processes import progress, take_from_main
from .ridge import Regression, solve_ridge

logger = logging.get_logger(__name__)

Walks = list[PrunedWalk | None]
"""One walk for each batch; `None` where another process has it."""

_LEAST_SCALE = 1e-3  # share of the mean scale
_HELD_OUT = 5  # every fifth batch (or token, in a single batch) chooses the strength, and whether to refit at all


def compensate(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    calibration: Calibration,
    config: OptinConfig | None = None,
) -> None:
    """Refit producers and consumers of `pruned`, in place; returns nothing.

    Args:
        dense: the model before pruning; unchanged.
        pruned: the rewritten model.
        groups: groups of the dense model.
        calibration: the dense model's calibration.
        config: see `dense_passes`.
    """
    refit(dense, [pruned], groups, dense_passes(dense, groups, calibration, config or OptinConfig()))


@torch.inference_mode(False)
@torch.no_grad()
def refit(
    dense: nn.Module,
    pruned: Sequence[nn.Module],
    groups: Groups,
    starts: Sequence[Start | None],
    strength: float | None = None,
) -> None:
    """Refit producers and consumers of pruned models, in place; returns nothing.

    Besides the models, memory holds: the calibration data's hidden states at one layer of every model, with the sources
    and targets of that layer's sublayers; the Gram matrices of one regression; and the starts, which are the first
    layer's input, the arguments of every layer (attention masks, MPNet's position bias), and a weight for each token
    and sublayer.

    Args:
        dense: the model before pruning; unchanged.
        pruned: models that were made from it by `rewrite`; they share one pass of the dense model.
        groups: groups of the dense model.
        starts: from `dense_passes`; `None` for batches that other processes work on.
        strength: strength of the regularisation; `None` chooses it for each linear on held-out tokens, which costs
            several times as much linear algebra.

    Raises:
        ValueError: a linear cannot be refitted, as numbers are not finite; names its group.
    """
    stack = None
    with ExitStack() as contexts:
        for model in (dense, *pruned):
            contexts.enter_context(frozen(model))
        for name, path in progress(groups.layers.items(), "compensation", "layer"):
            if stack_of(name) != stack:
                stack = stack_of(name)
                dense_walks = [start and Walk(start, stack) for start in starts]
                walks_of = [[walk and PrunedWalk(walk) for walk in dense_walks] for _ in pruned]
            layer_groups = [group for group in groups if group.layer == name]
            for walk in filter(None, dense_walks):
                walk.enter(name, dense, path, layer_groups)
            for model, walks in zip(pruned, walks_of, strict=True):
                _refit_layer(model, path, layer_groups, walks, strength)


def _refit_layer(pruned: nn.Module, path: str, groups: list[Group], walks: Walks, strength: float | None) -> None:
    """Refit the sublayers of a layer in order, and walk through it."""
    for index, group in enumerate(groups):
        try:
            _refit_producers(pruned, path, group, walks, strength)
            _refit_consumer(pruned, path, group, groups[:index], walks=walks, strength=strength)
        except ValueError as error:
            raise ValueError(f"{group.key} cannot be refitted: {error}; check its weights and the data.") from error
    for walk in filter(None, walks):
        walk.leave(pruned, path)


def check_tokens(groups: Groups, calibration: Calibration) -> None:
    """Warn if a stack has fewer calibration tokens than its widest consumer has inputs."""
    for stack in groups.inputs:
        tokens = sum(int(real[stack].sum()) for real in calibration.real)
        inputs = max((group.units * group.width for group in groups if stack_of(group.layer) == stack), default=0)
        if tokens < inputs:
            logger.warning(
                f"calibration data have {tokens} tokens, fewer than the {inputs} inputs of a linear: the refit may do "
                "little; give more samples."
            )


def _refit_producers(pruned: nn.Module, path: str, group: Group, walks: Walks, strength: float | None) -> None:
    """Let W read A x + c, the best guess at the dense model's input, instead of x: W <- W A, b <- b + W c."""
    producers = [find_module(pruned, producer.path) for producer in group.producers]
    if None in producers or producers[0].out_features == 0:  # they went with the last unit
        return
    fit, held_out = _sums(
        producers[0], producers[0].in_features, walks, lambda walk: walk.input_errors(pruned, path, group)
    )
    # BEiT's key projection has no bias beside others that have one: each gets the guess that it can hold.
    for intercept in sorted({producer.bias is not None for producer in producers}):
        change, shift = _solved(fit, held_out, intercept, strength)
        for producer in (each for each in producers if (each.bias is not None) == intercept):
            weight = producer.weight.double()
            producer.weight += (weight @ change).to(producer.weight)
            if intercept:
                producer.bias += (weight @ shift).to(producer.bias)


def _refit_consumer(
    pruned: nn.Module, path: str, group: Group, earlier: list[Group], *, walks: Walks, strength: float | None
) -> None:
    consumer = pruned.get_submodule(group.consumer)
    fit, held_out = _sums(
        consumer, consumer.out_features, walks, lambda walk: walk.output_errors(pruned, path, group, earlier)
    )
    weight, bias = _solved(fit, held_out, consumer.bias is not None, strength)
    if group.residual.scale is not None:  # the errors are those of the stream
        share = _inverse(attribute(pruned, group.residual.scale), weight)
        weight, bias = weight * share[:, None], bias * share
    if consumer.in_features:
        consumer.weight += weight.to(consumer.weight)
    if consumer.bias is not None:
        consumer.bias += bias.to(consumer.bias)


def _inverse(scale: Tensor | float, like: Tensor) -> Tensor:
    """1 / layer scale for each channel, by which changes are multiplied; 0 for channels all but switched off."""
    scale = torch.as_tensor(scale).to(like).expand(len(like))
    return torch.where(scale.abs() > _LEAST_SCALE * scale.abs().mean(), 1 / scale, 0)


def _sums(
    linear: nn.Linear, outputs: int, walks: Walks, rows_of: Callable[[PrunedWalk], Rows]
) -> tuple[Regression, Regression]:
    """The sums of all walks' rows, with the linear's inputs and `outputs` errors: (to fit, held out)."""
    fit, held_out = (Regression(linear.in_features, outputs, linear.weight.device) for _ in range(2))
    for index, walk in enumerate(walks):
        if walk is None:
            continue
        rows = rows_of(walk)
        if len(walks) == 1:
            is_held_out = torch.arange(len(rows[0])) % _HELD_OUT == 0
            held_out.add(*(each[is_held_out] for each in rows))
            fit.add(*(each[~is_held_out] for each in rows))
        else:
            (held_out if index % _HELD_OUT == 0 else fit).add(*rows)
    fit.add_up()
    held_out.add_up()
    return fit, held_out


def _solved(fit: Regression, held_out: Regression, intercept: bool, strength: float | None) -> tuple[Tensor, Tensor]:
    """What `solve_ridge` returns, the same to the last bit on every process."""
    weight, bias = (each.contiguous() for each in solve_ridge(fit, held_out, intercept, strength))
    take_from_main(weight, bias)
    return weight, bias
