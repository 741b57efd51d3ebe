"""From scores to a smaller model: choose what to keep under the budget, cut, refit, and measure how far off it is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from transformers import PreTrainedModel
from transformers.utils import logging

from .architectures.group import Groups, Masks
from .compensation.refit import refit
from .config import OptinConfig
from .editing.surgery import rewrite
from .figures import Divergence, HubModel
from .inputs.probes import probe_batch
from .merging.schedule import TokenSchedule
from .passes.calibration import Calibration, dense_passes
from .report import PruningReport, layers_of
from .running.prepared import copy_of
from .scoring import Scores
from .search.divergence import measure_divergence
from .search.macs import count_macs, count_parameters, share_left
from .search.trials import choose
from .storage.plugin import merge_tokens_of, record_structure
from .storage.structure import Structure, structure_of
from .storage.uniform import record_sizes

logger = logging.get_logger(__name__)

_HELD_OUT = 8  # every eighth batch is kept from the refit, to measure divergence on
_COLLAPSE = 0.75  # agreement below which a collapse is announced; docs/source/results.mdx shows what it means


@dataclass(frozen=True)
class Pruned:
    """What `prune_model` made.

    Args:
        model: the smaller model.
        structure: what it keeps, earlier prunings included.
        masks: the units of the dense model that it keeps.
        output_weight: weight of the output term that the search took.
        schedule: the tokens that it merges; `None` for none.
        divergence: of its outputs from the dense model's; `None` without batches.
        seconds: wall-clock time by stage.
    """

    model: PreTrainedModel
    structure: Structure
    masks: Masks
    output_weight: float
    schedule: TokenSchedule | None
    divergence: Divergence | None
    seconds: dict[str, float]


def prune_model(
    model: PreTrainedModel, groups: Groups, scores: Scores, calibration: Calibration | None, config: OptinConfig
) -> Pruned:
    """Search, cut, refit, measure.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        calibration: its calibration; may be `None` if there is nothing to refit.
        config: the budget and the rest; checked before.
    """
    fit, others = _split(0 if calibration is None else len(calibration))
    seconds: dict[str, float] = {}
    with _timed(seconds, "dense passes"):
        refits = config.compensation == "ridge"
        starts = dense_passes(model, groups, calibration, config, fit) if refits else []
    held_out = None if calibration is None else calibration.part(others)
    with _timed(seconds, "search"):
        choice = choose(model, groups, scores, config, starts=starts, held_out=held_out)
    masks = choice.masks
    with _timed(seconds, "rewrite"):
        pruned = copy_of(model)
        rewrite(pruned, groups, masks)
        structure = structure_of(groups, masks)
        if config.layout == "uniform":
            record_sizes(pruned, groups, masks)
        else:
            structure = record_structure(pruned, structure)
    with _timed(seconds, "compensation"):
        if starts and not all(mask.all() for mask in masks.values()):
            refit(model, [pruned], groups, starts)
    if choice.schedule is not None:  # after the refit, for which dense and pruned tokens stand side by side
        merge_tokens_of(pruned, choice.schedule)
    with _timed(seconds, "divergence"):
        divergence = _divergence(model, pruned, groups, held_out, apart=fit != others)
    return Pruned(pruned, structure, masks, choice.output_weight, choice.schedule, divergence, seconds)


def report_of(
    model: PreTrainedModel,
    groups: Groups,
    pruned: Pruned,
    scores: Scores,
    config: OptinConfig,
    *,
    calibration: Calibration | None,
    base: HubModel | None,
) -> PruningReport:
    """What was asked for, kept and measured.

    Args:
        model: the dense model.
        groups: its groups.
        pruned: what was made of it.
        scores: that it was made by.
        config: that it was made with.
        calibration: that it was refitted and compared on, if it was.
        base: the dense model on the Hub.
    """
    tokens = scores.tokens
    batch = probe_batch(model, tokens)
    return PruningReport(
        flops_requested=config.flops,
        # Not by counts of whole models: with a layer's last unit goes more than units cost (SwinV2's position biases).
        flops_achieved=share_left(model, groups, tokens, pruned.masks, pruned.schedule),
        tokens=tokens,
        macs_dense=count_macs(model, batch),
        macs_pruned=count_macs(pruned.model, batch),
        params_dense=count_parameters(model),
        params_pruned=count_parameters(pruned.model),
        layers=layers_of(pruned.structure),
        merges=pruned.schedule.to_json()["merges"] if pruned.schedule else {},
        seconds={"score": scores.seconds, **pruned.seconds},
        config=config.to_dict(),
        output_weight=pruned.output_weight,
        divergence=pruned.divergence,
        calibration=None if calibration is None else {"samples": calibration.samples, **calibration.source},
        base=base,
    )


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


def _divergence(
    dense: PreTrainedModel, pruned: PreTrainedModel, groups: Groups, held_out: Calibration | None, *, apart: bool
) -> Divergence | None:
    """The divergence, if there is something to measure it on; a collapse is announced."""
    if held_out is None:
        return None
    (divergence,) = measure_divergence(dense, [pruned], groups, held_out, apart)
    if divergence.agreement is not None and divergence.agreement < _COLLAPSE:
        logger.warning(
            f"the pruned model's outputs agree with the dense model's to only {divergence.agreement:.0%} on "
            f"{divergence.samples} calibration samples: expect a large loss; ask for more flops."
        )
    return divergence
