"""Compensation: refit what is left to do the work of what was removed, in closed form and without labels.

It goes sublayer by sublayer, on inputs that have passed the pruned sublayers below, with two ridge regressions for
each. Its producers are corrected for what their input lacks, as far as the input itself tells. Its consumer is refitted
to the dense model's output of the sublayer, and to make up for the error that the residual stream carries. Tokens weigh
as much as they matter to the model's output (`token_weights.py`). Both changes are folded into weights and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..architectures.group import Groups, Masks, stack_of
from ..config import OptinConfig
from ..passes.calibration import Calibration, dense_passes
from ..passes.course import Course, Stop, find_course
from ..passes.hooks import find_module
from ..passes.joins import Join
from ..passes.pauses import kept_modules
from ..passes.starts import Start
from ..passes.walk import PrunedWalk, Rows, Walk, watched
from ..running.freezing import frozen
from ..running.linears import add_to_weight, is_convolution, weight_of
from ..running.processes import first_of_all, progress, take_from_main
from .ridge import Regression, solve_ridge

logger = logging.get_logger(__name__)

Walks = list[PrunedWalk | None]
"""One walk for each batch; `None` where another process has it."""

ALONE = "refitted to what it writes alone, as no sum was found that this joins"
UNREACHED = "not refitted, as the calibration data do not come by it"

_LEAST_SCALE = 1e-3  # share of the mean scale
_HELD_OUT = 5  # every fifth batch (or token, in a single batch) chooses the strength, and whether to refit at all
_SAMPLES = 2  # to find the course with


def compensate(
    dense: nn.Module,
    pruned: nn.Module,
    groups: Groups,
    calibration: Calibration,
    config: OptinConfig | None = None,
    *,
    masks: Masks | None = None,
) -> None:
    """Refit producers and consumers of `pruned`, in place; returns nothing.

    Args:
        dense: the model before pruning; unchanged.
        pruned: the rewritten model.
        groups: groups of the dense model.
        calibration: the dense model's calibration.
        config: see `dense_passes`.
        masks: see `refit`.
    """
    starts = dense_passes(dense, groups, calibration, config or OptinConfig())
    refit(dense, [pruned], groups, starts, masks=None if masks is None else [masks])


@torch.inference_mode(False)
@torch.no_grad()
def refit(
    dense: nn.Module,
    pruned: Sequence[nn.Module],
    groups: Groups,
    starts: Sequence[Start | None],
    strength: float | None = None,
    *,
    masks: Sequence[Masks] | None = None,
) -> dict[str, str]:
    """Refit producers and consumers of pruned models, in place.

    Every batch goes through each model in one forward pass, and all passes wait for each other where a linear is
    refitted (`walk.py`). Besides the models, memory holds what these passes hold at that place, the targets of one
    sublayer, and the sums of one regression.

    Args:
        dense: the model before pruning; unchanged.
        pruned: models that were made from it by `rewrite`; they share one pass of the dense model.
        groups: groups of the dense model.
        starts: from `dense_passes`; `None` for batches that other processes work on.
        strength: strength of the regularisation; `None` chooses it for each linear on held-out tokens, which costs
            several times as much linear algebra.
        masks: what each of the pruned models keeps; may be `None` if no consumer writes units of another group.

    Returns:
        Group key -> what was different with it: `ALONE` or `UNREACHED`. Others were refitted to the residual stream.

    Raises:
        ValueError: a linear cannot be refitted, as numbers are not finite; names its group. Or masks are missing.
    """
    if masks is None:
        _check_outputs(dense, pruned, groups)
    with ExitStack() as contexts:
        for model in (dense, *pruned):
            contexts.enter_context(frozen(model))
            contexts.enter_context(kept_modules(model))
        course = _course(dense, groups, starts).within((dense, *pruned))
        stops = [[stop for stop in course.stops if has_stop(model, stop)] for model in pruned]
        contexts.enter_context(watched(dense, course, course.stops))
        for model, there in zip(pruned, stops, strict=True):
            contexts.enter_context(watched(model, course, there))
        dense_walks = [start and _kept(contexts, Walk(dense, course, start)) for start in starts]
        kept = [kept_outputs(dense, groups, each) for each in masks or [{}] * len(pruned)]
        walks_of = [
            [walk and _kept(contexts, PrunedWalk(model, walk, outputs)) for walk in dense_walks]
            for model, outputs in zip(pruned, kept, strict=True)
        ]
        for stop in progress(course.stops, "compensation", "linear"):
            for walk in filter(None, dense_walks):
                walk.reach(stop)
            for model, walks, there, outputs in zip(pruned, walks_of, stops, kept, strict=True):
                if stop in there:
                    _refit(model, stop, _join(course, stop, outputs), walks, strength)
            for walk in filter(None, dense_walks):
                walk.leave(stop)
    reached = {stop.path: stop.group.key for stop in course.stops if stop.consumer}
    notes = {group.key: UNREACHED for group in groups if group.key not in reached.values()}
    alone = {key for path, key in reached.items() if path not in course.joins}
    return notes | dict.fromkeys(sorted(alone), ALONE)


def _check_outputs(dense: nn.Module, pruned: Sequence[nn.Module], groups: Groups) -> None:
    """Raise if it takes masks to tell which outputs consumers have left."""
    for path in kept_outputs(dense, groups, {group.key: torch.ones(group.units) for group in groups}):
        written = len(weight_of(dense.get_submodule(path)))
        if any(len(weight_of(model.get_submodule(path))) < written for model in pruned):
            raise ValueError(f"{path} writes units that were cut: give the masks, which tell its outputs from others.")


def kept_outputs(dense: nn.Module, groups: Groups, masks: Masks) -> dict[str, Tensor]:
    """Path of every consumer that writes units of some other group -> which of its outputs are left, ascending."""
    consumers = {each.path for group in groups for each in group.consumers}
    kept: dict[str, Tensor] = {}
    for group in (group for group in groups if group.key in masks):
        units = masks[group.key].cpu().nonzero().flatten()
        for part in group.cut.writes:
            path, _, name = part.tensor.rpartition(".")
            if path in consumers and name == "weight":
                kept[path] = part.indices(group.units, units, dense.get_parameter(part.tensor).shape[part.dim])
    return kept


def _course(dense: nn.Module, groups: Groups, starts: Sequence[Start | None]) -> Course:
    """The course of the first batch, the same on every process."""
    start = next(filter(None, starts), None)
    sample = start and {name: value[:_SAMPLES] for name, value in start.batch.items()}
    return first_of_all(sample and find_course(dense, groups, sample))


def _join(course: Course, stop: Stop, kept: Mapping[str, Tensor]) -> Join | None:
    """The join of what a pruned model's consumer writes."""
    join = course.joins.get(stop.path)
    return join.of(kept[stop.path]) if join and stop.path in kept else join


def _kept(contexts: ExitStack, walk: Walk | PrunedWalk) -> Walk | PrunedWalk:
    return contexts.enter_context(closing(walk))


def has_stop(model: nn.Module, stop: Stop) -> bool:
    """Whether a pruned model has something to refit at a stop; producers go with the last unit."""
    producers = [find_module(model, path) for path in stop.producers]
    return None not in producers and all(len(weight_of(producer)) for producer in producers)


def _refit(model: nn.Module, stop: Stop, join: Join | None, walks: Walks, strength: float | None) -> None:
    """Refit what is about to run at a stop; the passes go on behind it."""
    try:
        if stop.consumer is None:
            _refit_producers(model, stop, walks, strength)
        else:
            _refit_consumer(model, stop, None if join is None else join.scale, walks, strength)
    except ValueError as error:
        raise ValueError(f"{stop.group.key} cannot be refitted: {error}; check its weights and the data.") from error


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


def _refit_producers(pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None) -> None:
    """Let producers write what they would write of the dense model's input, as far as their own input tells."""
    if is_convolution(pruned.get_submodule(stop.path)):
        _refit_convolutions(pruned, stop, walks, strength)
    else:
        _refit_linears(pruned, stop, walks, strength)


def _refit_linears(pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None) -> None:
    """Let W read A x + c, the best guess at the dense model's input, instead of x: W <- W A, b <- b + W c."""
    producers = [pruned.get_submodule(path) for path in stop.producers]
    inputs = weight_of(producers[0]).shape[1]
    ((fit, held_out),) = _sums(walks, stop, [(producers[0], inputs, PrunedWalk.input_errors)])
    # BEiT's key projection has no bias beside others that have one: each gets the guess that it can hold.
    for intercept in sorted({producer.bias is not None for producer in producers}):
        change, shift = _solved(fit, held_out, intercept, strength)
        for producer in (each for each in producers if (each.bias is not None) == intercept):
            weight = weight_of(producer).double()
            _add(producer, None, weight @ change, weight @ shift)


def _refit_convolutions(pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None) -> None:
    """The same for patches, which hold many more numbers than a convolution writes: what it writes is guessed."""
    norms = {each.path: each.norm and pruned.get_submodule(each.norm) for each in stop.group.producers}
    producers = {path: pruned.get_submodule(path) for path in stop.producers}
    wanted = [
        (producer, len(weight_of(producer)), partial(PrunedWalk.map_errors, path=path))
        for path, producer in producers.items()
    ]
    for (path, producer), (fit, held_out) in zip(producers.items(), _sums(walks, stop, wanted), strict=True):
        intercept = producer.bias is not None or norms[path] is not None
        _add(producer, norms[path], *_solved(fit, held_out, intercept, strength))


def _refit_consumer(pruned: nn.Module, stop: Stop, scale: Tensor | None, walks: Walks, strength: float | None) -> None:
    consumer = pruned.get_submodule(stop.path)
    norm = stop.consumer.norm and pruned.get_submodule(stop.consumer.norm)
    ((fit, held_out),) = _sums(walks, stop, [(consumer, len(weight_of(consumer)), PrunedWalk.output_errors)])
    weight, bias = _solved(fit, held_out, consumer.bias is not None or norm is not None, strength)
    if norm is not None:
        scale = _slope(norm) if scale is None else _slope(norm) * scale.to(norm.running_var)
    if scale is not None:  # the errors are those of the stream
        share = _inverse(scale, weight)
        weight, bias = weight * share[:, None], bias * share
    _add(consumer, norm, weight, bias)


def _add(linear: nn.Module, norm: nn.Module | None, weight: Tensor, bias: Tensor) -> None:
    """Add changes to a linear or a convolution, in place: of the bias, if it has none, to what follows it."""
    if weight.numel():
        add_to_weight(linear, weight)
    if linear.bias is not None:
        linear.bias.add_(bias.to(linear.bias))  # not set anew: one without elements is no parameter
    elif norm is not None:
        norm.running_mean -= bias.to(norm.running_mean)


def _slope(norm: nn.Module) -> Tensor:
    """What a batch norm multiplies each channel by, shape (channels,)."""
    slope = (norm.running_var + norm.eps).rsqrt()
    return slope if norm.weight is None else slope * norm.weight


def _inverse(scale: Tensor | float, like: Tensor) -> Tensor:
    """1 / layer scale for each channel, by which changes are multiplied; 0 for channels all but switched off."""
    scale = torch.as_tensor(scale).to(like).expand(len(like))
    return torch.where(scale.abs() > _LEAST_SCALE * scale.abs().mean(), 1 / scale, 0)


_Wanted = tuple[nn.Module, int, Callable[[PrunedWalk, Stop], Rows | None]]
"""A linear or convolution, how many errors a row has, and what gives the rows of a walk."""


def _sums(walks: Walks, stop: Stop, wanted: Sequence[_Wanted]) -> list[tuple[Regression, Regression]]:
    """For each regression that is wanted, the sums of all walks' rows: (to fit, held out)."""
    sums = []
    for linear, outputs, _ in wanted:
        inputs, device = weight_of(linear).shape[1], linear.weight.device
        sums.append((Regression(inputs, outputs, device), Regression(inputs, outputs, device)))
    for index, walk in enumerate(walks):
        if walk is None:
            continue
        if walk.reach(stop):
            for (_, _, rows_of), (fit, held_out) in zip(wanted, sums, strict=True):
                rows = rows_of(walk, stop)
                if rows is None:
                    continue
                if len(walks) == 1:
                    is_held_out = torch.arange(len(rows[0])) % _HELD_OUT == 0
                    held_out.add(*(each[is_held_out] for each in rows))
                    fit.add(*(each[~is_held_out] for each in rows))
                else:
                    (held_out if index % _HELD_OUT == 0 else fit).add(*rows)
        walk.leave(stop)
    for pair in sums:
        for each in pair:
            each.add_up()
    return sums


def _solved(fit: Regression, held_out: Regression, intercept: bool, strength: float | None) -> tuple[Tensor, Tensor]:
    """What `solve_ridge` returns, the same to the last bit on every process."""
    weight, bias = (each.contiguous() for each in solve_ridge(fit, held_out, intercept, strength))
    take_from_main(weight, bias)
    return weight, bias
