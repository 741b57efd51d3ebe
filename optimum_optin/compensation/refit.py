"""Compensation: refit what is left to do the work of what was removed, in closed form and without labels.

It goes sublayer by sublayer, on inputs that have passed the pruned sublayers below, with two ridge regressions for
each. Its producers are corrected for what their input lacks, as far as the input itself tells. Its consumer is refitted
to the dense model's output of the sublayer, and to make up for the error that the residual stream carries. Tokens weigh
as much as they matter to the model's output (`token_weights.py`). Both changes are folded into weights and biases.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..architectures.group import EXPERT_NEURONS, Group, Groups, Masks, consumers_by_path, stack_of
from ..config import OptinConfig
from ..passes.calibration import Calibration, dense_passes
from ..passes.course import Course, Stop, find_course
from ..passes.half_precision import float_products
from ..passes.hooks import find_module
from ..passes.joins import Join
from ..passes.pauses import kept_modules
from ..passes.starts import Start, shared_out
from ..passes.walk import PrunedWalk, Walk, watched
from ..running.freezing import frozen
from ..running.linears import weight_of
from ..running.prepared import set_apart
from ..running.processes import first_of_all
from ..stages.progress import progress
from .corrections import refit_at

logger = logging.get_logger(__name__)

ALONE = "refitted to what it writes alone, as no sum was found that this joins"
UNREACHED = "not refitted, as the calibration data do not come by it"

ROUNDS = 3
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
        starts: from `dense_passes`, the same on every process; `None` for a batch that is not to be used.
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
    for model in pruned:  # weights are changed in place
        set_apart(model, dense, tables=False)
    with ExitStack() as contexts:
        for model in (dense, *pruned):
            contexts.enter_context(frozen(model))
            contexts.enter_context(kept_modules(model))
        contexts.enter_context(float_products(dense))
        course = _course(dense, groups, starts).within((dense, *pruned))
        stops = [[stop for stop in course.stops if has_stop(model, stop)] for model in pruned]
        contexts.enter_context(watched(dense, course, course.stops))
        for model, there in zip(pruned, stops, strict=True):
            contexts.enter_context(watched(model, course, there))
        # Of a single batch, every fifth row chooses the strengths, and parts would take others for these.
        starts = shared_out(starts, by_samples=len(starts) > 1 or strength is not None)
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
                    sums = refit_at(model, stop, walks, strength, join=join)
                    for _ in range(rounds - 1 if stop.paths <= course.rectified else 0):
                        refit_at(model, stop, walks, strength, join=join, earlier=sums)
                    del sums  # or they would be in memory beside the next ones
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


def _inputs_of(group: Group) -> int:
    """How many inputs the linear has that reads the units of a group; of experts, that of one."""
    return group.units * group.width // (group.parts if group.role == EXPERT_NEURONS else 1)


def check_tokens(groups: Groups, calibration: Calibration) -> None:
    """Warn if a stack has fewer calibration tokens than its widest consumer has inputs."""
    for stack in groups.inputs:
        tokens = sum(int(real[stack].sum()) for real in calibration.real)
        inputs = max((_inputs_of(group) for group in groups if stack_of(group.layer) == stack), default=0)
        if tokens < inputs:
            logger.warning(
                f"calibration data have {tokens} tokens, fewer than the {inputs} inputs of a linear: the refit may do "
                "little; give more samples."
            )
