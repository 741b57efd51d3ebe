"""From scores to a smaller model: choose what to keep under the budget, cut, refit, and measure how far off it is."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .compensation import dense_passes, refit
from .config import OptinConfig
from .costs import cost_tables, dense_cost
from .divergence import Divergence, measure_divergence
from .groups import HEADS, NEURONS, Batch, Group, Masks
from .plugin import record_structure
from .scoring import Scores
from .search import search, search_uniform
from .structure import Structure, structure_of
from .surgery import rewrite
from .trajectory import has_head
from .trials import least_divergent
from .uniform import record_sizes, uniform_floors
from .walk import Start

logger = logging.get_logger(__name__)

_HELD_OUT = 8  # every eighth batch is kept from the refit, to measure divergence on
_COLLAPSE = 0.75  # agreement below which a collapse is announced; docs/source/results.mdx shows what it means
_TRIALS = (1.0, 0.1, 10.0)  # times the output term's weight
_TRIAL_PART = 8  # trial cuts are refitted on this part of the batches


@dataclass(frozen=True)
class Pruned:
    """What `prune_model` made.

    Args:
        model: the smaller model.
        structure: what it keeps, earlier prunings included.
        output_weight: weight of the output term that the search took.
        divergence: of its outputs from the dense model's; `None` without batches.
        seconds: wall-clock time by stage.
    """

    model: PreTrainedModel
    structure: Structure
    output_weight: float
    divergence: Divergence | None
    seconds: dict[str, float]


def prune_model(
    model: PreTrainedModel, groups: Sequence[Group], scores: Scores, batches: Sequence[Batch], config: OptinConfig
) -> Pruned:
    """Search, cut, refit, measure.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        batches: calibration batches on its device; may be empty if there is nothing to refit.
        config: the budget and the rest; checked before.
    """
    costs = cost_tables(model, groups, scores.tokens)
    fit, held_out = _split(len(batches))
    seconds: dict[str, float] = {}
    with _timed(seconds, "dense passes"):
        starts = _starts(model, scores, batches, fit, config) if config.compensation == "ridge" else []
    held_out = [batches[index] for index in held_out]
    with _timed(seconds, "search"):
        masks, output_weight = _choose(model, groups, scores, costs, config, starts=starts, held_out=held_out)
    with _timed(seconds, "rewrite"):
        pruned = copy.deepcopy(model)
        rewrite(pruned, groups, masks)
        structure = structure_of(groups, masks)
        if config.layout == "uniform":
            record_sizes(pruned, groups, masks)
        else:
            structure = record_structure(pruned, structure)
    with _timed(seconds, "compensation"):
        if starts and not all(mask.all() for mask in masks.values()):
            refit(model, [pruned], starts)
    with _timed(seconds, "divergence"):
        divergence = _divergence(model, pruned, held_out, len(batches) > 1)
    return Pruned(pruned, structure, output_weight, divergence, seconds)


def ranked(
    scores: Scores,
    groups: Sequence[Group],
    costs: Mapping[str, Tensor],
    config: OptinConfig,
    output_weight: float | None = None,
) -> Masks:
    """The masks that a search of the combined scores finds for the configured budget and layout.

    Args:
        scores: scores of the groups' units.
        groups: the model's groups.
        costs: group key -> MACs of keeping n units (`cost_tables`).
        config: budget, layout and floors.
        output_weight: see `Scores.combine`; `None` takes the configuration's.
    """
    combined = scores.combine(config.output_weight if output_weight is None else output_weight)
    ordered = {group.key: combined[group.key] for group in groups}
    find = search_uniform if config.layout == "uniform" else search
    return find(ordered, costs, config.flops * dense_cost(costs), floors_of(config, groups))


def floors_of(config: OptinConfig, groups: Sequence[Group]) -> dict[str, int]:
    """Role -> units that every group keeps at least."""
    floors = {HEADS: config.min_heads, NEURONS: config.min_neurons}
    return uniform_floors(groups, floors) if config.layout == "uniform" else floors


def _choose(
    model: PreTrainedModel,
    groups: Sequence[Group],
    scores: Scores,
    costs: Mapping[str, Tensor],
    config: OptinConfig,
    *,
    starts: Sequence[Start | None],
    held_out: Sequence[Batch],
) -> tuple[Masks, float]:
    """The masks, and the weight of the output term that they come from."""
    # Without a head, no distance that we tried tells which cut serves better (docs/source/results.mdx).
    measured = config.search == "measured" and held_out and has_head(model, held_out[0])
    tries = _TRIALS if measured else _TRIALS[:1]
    weights = [config.output_weight * factor for factor in tries]
    candidates = [ranked(scores, groups, costs, config, weight) for weight in weights]
    if all(_same(candidates[0], other) for other in candidates[1:]):
        return candidates[0], weights[0]
    part = starts[: max(1, len(starts) // _TRIAL_PART)]
    chosen = least_divergent(candidates, model, groups=groups, starts=part, held_out=held_out)
    return candidates[chosen], weights[chosen]


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def _split(batches: int) -> tuple[list[int], list[int]]:
    """Which batches to refit on and which to measure divergence on; one and the same where there is only one."""
    if batches < 2:
        return list(range(batches)), list(range(batches))
    every = min(_HELD_OUT, batches)
    return [index for index in range(batches) if index % every], list(range(0, batches, every))


def _starts(
    model: PreTrainedModel, scores: Scores, batches: Sequence[Batch], fit: Sequence[int], config: OptinConfig
) -> list[Start | None]:
    """What the refit starts from: the scoring's own passes of these batches, if it kept them."""
    if scores.starts is not None and scores.batches is batches:
        return [scores.starts[index] for index in fit]
    return [dense_passes(model, batches, config)[index] for index in fit]


def _divergence(
    dense: PreTrainedModel, pruned: PreTrainedModel, batches: Sequence[Batch], held_out: bool
) -> Divergence | None:
    """The divergence, if there are batches to measure it on; a collapse is announced."""
    if not batches:
        return None
    (divergence,) = measure_divergence(dense, [pruned], batches, held_out)
    if divergence.agreement is not None and divergence.agreement < _COLLAPSE:
        logger.warning(
            f"the pruned model's outputs agree with the dense model's to only {divergence.agreement:.0%} on "
            f"{divergence.samples} calibration samples: expect a large loss; ask for more flops."
        )
    return divergence


def _same(one: Masks, other: Masks) -> bool:
    return all(torch.equal(mask, other[key]) for key, mask in one.items())
