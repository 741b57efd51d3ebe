"""Compensation: refit what is left to do the work of what was removed, in closed form and without labels.

It goes sublayer by sublayer, on inputs that have passed the pruned sublayers below, with two ridge regressions for
each. Its producers are corrected for what their input lacks, as far as the input itself tells. Its consumer is refitted
to the dense model's output of the sublayer, and to make up for the error that the residual stream carries. Tokens weigh
as much as they matter to the model's output (`token_weights.py`). Both changes are folded into weights and biases.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..architectures.group import Groups, Masks, channel_width, consumers_by_path, stack_of
from ..config import OptinConfig
from ..passes.calibration import Calibration, dense_passes
from ..passes.course import Course, Stop, find_course
from ..passes.hooks import find_module
from ..passes.joins import Join
from ..passes.pauses import kept_modules
from ..passes.starts import Start
from ..passes.walk import PrunedWalk, Rows, Walk, watched
from ..running.freezing import frozen
from ..running.linears import WIDEST, add_to_weight, is_convolution, places_of, weight_of
from ..running.processes import first_of_all, progress, take_from_main
from .ridge import Regression, solve_ridge

logger = logging.get_logger(__name__)

Walks = list[PrunedWalk | None]
"""One walk for each batch; `None` where another process has it."""

_Sums = tuple[Regression, Regression]
"""The sums of rows to fit, and of those that are held out."""

ALONE = "refitted to what it writes alone, as no sum was found that this joins"
UNREACHED = "not refitted, as the calibration data do not come by it"

ROUNDS = 3
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
    rounds: int = ROUNDS,
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
        rounds: how often to refit what a ReLU reads: the first round aims at all of it, the others at what the ReLU
            lets pass.

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
                    join = _join(course, stop, outputs)
                    sums = _refit(model, stop, walks, strength, join=join)
                    for _ in range(rounds - 1 if stop.paths <= course.rectified else 0):
                        _refit(model, stop, walks, strength, join=join, earlier=sums)
                    for walk in filter(None, walks):
                        walk.leave(stop)
            for walk in filter(None, dense_walks):
                walk.leave(stop)
    return _notes(groups, course)


def _notes(groups: Groups, course: Course) -> dict[str, str]:
    """See the return value of `refit`."""
    reached = {stop.path for stop in course.stops if stop.consumer}
    notes = {}
    for group in groups:
        paths = reached.intersection(each.path for each in group.consumers)
        if not paths <= course.joins.keys():
            notes[group.key] = ALONE
        elif not paths:
            notes[group.key] = UNREACHED
    return notes


def _check_outputs(dense: nn.Module, pruned: Sequence[nn.Module], groups: Groups) -> None:
    """Raise if it takes masks to tell which outputs consumers have left."""
    for path in kept_outputs(dense, groups, {group.key: torch.ones(group.units) for group in groups}):
        written = len(weight_of(dense.get_submodule(path)))
        if any(len(weight_of(model.get_submodule(path))) < written for model in pruned):
            raise ValueError(f"{path} writes units that were cut: give the masks, which tell its outputs from others.")


def kept_outputs(dense: nn.Module, groups: Groups, masks: Masks) -> dict[str, Tensor]:
    """Path of every consumer that writes units of some other group -> which of its outputs are left, ascending."""
    consumers = consumers_by_path(groups)
    kept: dict[str, Tensor] = {}
    for group in (group for group in groups if group.key in masks):
        units = masks[group.key].cpu().nonzero().flatten()
        for part in group.cut.writes:
            path, _, name = part.tensor.rpartition(".")
            if path in consumers and name == "weight":
                rows = part.indices(group.units, units, dense.get_parameter(part.tensor).shape[part.dim])
                kept[path] = rows[torch.isin(rows, kept.get(path, rows))]  # other rows may be of another group
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


def _refit(
    model: nn.Module,
    stop: Stop,
    walks: Walks,
    strength: float | None,
    *,
    join: Join | None,
    earlier: Sequence[_Sums] = (),
) -> Sequence[_Sums]:
    """Refit what is about to run at a stop.

    Args:
        model: the pruned model.
        stop: the stop.
        walks: all walks through the model.
        strength: see `refit`.
        join: the join of what the consumer writes.
        earlier: what an earlier round returned; then what is refitted goes by what a ReLU lets pass.

    Returns:
        The sums of each regression.
    """
    try:
        if stop.consumer is not None:
            return _refit_consumer(model, stop, walks, strength, join=join, earlier=earlier)
        if is_convolution(model.get_submodule(stop.path)):
            return _refit_convolutions(model, stop, walks, strength, earlier)
        return _refit_linears(model, stop, walks, strength)
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


def _refit_linears(pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None) -> Sequence[_Sums]:
    """Let producers write what they would write of the dense model's input x*, as far as their own input x tells.

    W reads the best guess at it, A x + c, instead of x: W <- W A, b <- b + W c.
    """
    producers = [pruned.get_submodule(path) for path in stop.producers]
    inputs = weight_of(producers[0]).shape[1]
    if inputs > WIDEST:  # a guess at each of so many inputs does not fit into memory
        return []
    (sums,) = _sums(walks, stop, [_Wanted(producers[0], inputs, PrunedWalk.input_errors)])
    # BEiT's key projection has no bias beside others that have one: each gets the guess that it can hold.
    for intercept in sorted({producer.bias is not None for producer in producers}):
        change, shift = _solved(*sums, intercept, strength)
        for producer in (each for each in producers if (each.bias is not None) == intercept):
            weight = weight_of(producer).double()
            _add(producer, None, weight @ change, weight @ shift)
    return [sums]


def _refit_convolutions(
    pruned: nn.Module, stop: Stop, walks: Walks, strength: float | None, earlier: Sequence[_Sums]
) -> Sequence[_Sums]:
    """The same for patches, which hold many more numbers than a convolution writes: what it writes is guessed."""
    norms = {each.path: each.norm and pruned.get_submodule(each.norm) for each in stop.group.producers}
    producers = {path: pruned.get_submodule(path) for path in stop.producers}
    wanted = []
    for path, producer in producers.items():
        rows_of = partial(PrunedWalk.map_errors, path=path, norm=norms.get(path), rectified=bool(earlier))
        wanted.append(_Wanted(producer, len(weight_of(producer)), rows_of, places_of(producer)))
    found = _sums(walks, stop, wanted, earlier)
    for (path, producer), sums in zip(producers.items(), found, strict=True):
        _correct(producer, sums, strength, norm=norms.get(path))
    return found


def _refit_consumer(
    pruned: nn.Module,
    stop: Stop,
    walks: Walks,
    strength: float | None,
    *,
    join: Join | None,
    earlier: Sequence[_Sums],
) -> Sequence[_Sums]:
    """Let a consumer write what makes up for all that the stream after it lacks, as far as its input tells."""
    consumer = pruned.get_submodule(stop.path)
    rows_of = partial(PrunedWalk.output_errors, rectified=bool(earlier))
    places = places_of(consumer, channel_width(stop.group, stop.consumer))
    found = _sums(walks, stop, [_Wanted(consumer, len(weight_of(consumer)), rows_of, places)], earlier)
    norm = stop.consumer.norm and pruned.get_submodule(stop.consumer.norm)
    _correct(consumer, *found, strength, norm=norm, scale=None if join is None else join.scale)
    return found


def _correct(
    linear: nn.Module,
    sums: _Sums,
    strength: float | None,
    *,
    norm: nn.Module | None,
    scale: Tensor | None = None,
) -> None:
    """Correct errors of what a linear or convolution writes, behind a batch norm and a layer scale if there are any."""
    weight, bias = _solved(*sums, linear.bias is not None or norm is not None, strength)
    places = weight_of(linear).shape[1] // max(weight.shape[1], 1)
    weight = weight.repeat_interleave(places, 1) / places  # what is told by a mean of places changes all of them alike
    if norm is not None:
        scale = _slope(norm) if scale is None else _slope(norm) * scale.to(norm.running_var)
    if scale is not None:
        share = _inverse(scale, weight)
        weight, bias = weight * share[:, None], bias * share
    _add(linear, norm, weight, bias)


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


@dataclass(frozen=True)
class _Wanted:
    """A regression that is wanted.

    Args:
        linear: the linear or convolution whose input tells the errors.
        outputs: how many errors a row has.
        rows_of: gives the rows of a walk.
        places: see `places_of`; the rows are of the mean of so many features each.
    """

    linear: nn.Module
    outputs: int
    rows_of: Callable[[PrunedWalk, Stop], Rows | None]
    places: int = 1

    def sums(self) -> tuple[Regression, Regression]:
        """Empty sums, to fit and held out."""
        sizes = weight_of(self.linear).shape[1] // self.places, self.outputs, self.linear.weight.device
        return Regression(*sizes), Regression(*sizes)

    def rows(self, walk: PrunedWalk, stop: Stop) -> Rows | None:
        """The rows of a walk, which has reached the stop."""
        rows = self.rows_of(walk, stop)
        if rows is None or self.places == 1:
            return rows
        return rows[0].unflatten(-1, (-1, self.places)).mean(-1), *rows[1:]


def _sums(walks: Walks, stop: Stop, wanted: Sequence[_Wanted], earlier: Sequence[_Sums] = ()) -> list[_Sums]:
    """For each regression that is wanted, the sums of all walks' rows; with those of the same rows and other errors."""
    sums = [(fit.of_other_errors(), held_out.of_other_errors()) for fit, held_out in earlier]
    sums = sums or [each.sums() for each in wanted]
    for index, walk in enumerate(walks):
        if walk is None:
            continue
        if walk.reach(stop):
            for each, (fit, held_out) in zip(wanted, sums, strict=True):
                rows = each.rows(walk, stop)
                if rows is None:
                    continue
                if len(walks) == 1:
                    is_held_out = torch.arange(len(rows[0])) % _HELD_OUT == 0
                    held_out.add(*(part[is_held_out] for part in rows))
                    fit.add(*(part[~is_held_out] for part in rows))
                else:
                    (held_out if index % _HELD_OUT == 0 else fit).add(*rows)
    for pair in sums:
        for each in pair:
            each.add_up()
    return sums


def _solved(fit: Regression, held_out: Regression, intercept: bool, strength: float | None) -> tuple[Tensor, Tensor]:
    """What `solve_ridge` returns, the same to the last bit on every process."""
    weight, bias = (each.contiguous() for each in solve_ridge(fit, held_out, intercept, strength))
    take_from_main(weight, bias)
    return weight, bias
