"""From scores to a smaller model: choose what to keep under the budget, cut, refit, and measure how far off it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging

from .architectures.group import Groups, Masks
from .compensation.refit import refit
from .config import OptinConfig
from .discovery.next_tokens import predicts_next_token
from .editing.surgery import rewrite
from .evaluation.latency import budgeted_latency
from .figures import Continuations, Divergence, HubModel
from .inputs.decoder_inputs import writes
from .inputs.probes import probe_batch, samples_of
from .merging.schedule import TokenSchedule
from .passes.calibration import Calibration, dense_passes
from .passes.half_precision import float_products
from .passes.starts import Start
from .pricing.macs import count_macs, total_cost
from .pricing.peaks import peak_bytes
from .pricing.tensors import count_bytes, count_parameters
from .quantities import is_share
from .report import PruningReport, layers_of
from .running.memory import give_back
from .running.prepared import copy_of, set_apart
from .scoring import Scores
from .search.candidates import Choice
from .search.divergence import measure_divergence
from .search.in_time import in_time
from .search.trials import choose
from .stages.progress import stage
from .storage.record import merge_tokens_of, record_structure
from .storage.structure import Structure, structure_of
from .storage.uniform import record_sizes
from .text_tasks import compare_continuations
from .timing.ratios import Ratio

logger = logging.get_logger(__name__)

_HELD_OUT = 8  # every eighth batch is kept from the refit, to measure divergence on
_COLLAPSE = 0.75  # agreement below which there is a warning; docs/source/results.mdx shows what it means
_COLLAPSE_OF_TEXT = 0.5  # the same of the tokens that a language model writes


STAGES = (("search", 5.0), ("compensation", 13.0), ("divergence", 2.0))
"""Stages of `prune_model`, with the seconds that they took of BERT-base where scoring took 15."""


@dataclass(frozen=True)
class Pruned:
    """What `prune_model` made.

    Args:
        model: the smaller model.
        structure: what it keeps, earlier prunings included.
        output_weight: weight of the output term that the masks come from.
        schedule: how many tokens it merges; `None` for none.
        divergence: divergence of its outputs from the dense model's; `None` without calibration.
        seconds: wall-clock time by stage.
        refit: what was different with the refit of some groups, by key; see `refit`.
        continuations: what it writes, if it is a language model.
        timed: its time as a part of the dense model's, if there was a budget of latency.
    """

    model: PreTrainedModel
    structure: Structure
    output_weight: float
    schedule: TokenSchedule | None
    divergence: Divergence | None
    seconds: dict[str, float]
    refit: dict[str, str]
    continuations: Continuations | None = None
    timed: Ratio | None = None


def prune_model(
    model: PreTrainedModel, groups: Groups, scores: Scores, calibration: Calibration | None, config: OptinConfig
) -> Pruned:
    """Search, cut, refit, measure.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        calibration: its calibration; may be `None` if nothing is to be refitted.
        config: the configuration; it must have passed the checks of `readiness.py`.
    """
    (pruned,) = prune_models(model, groups, scores, calibration, [config])
    return pruned


def prune_models(
    model: PreTrainedModel,
    groups: Groups,
    scores: Scores,
    calibration: Calibration | None,
    configs: Sequence[OptinConfig],
) -> list[Pruned]:
    """Prune to several budgets in one walk: all share the dense model's passes, and are in memory at once.

    Args:
        model: the dense model; unchanged.
        groups: its groups.
        scores: its scores.
        calibration: its calibration; may be `None` if nothing is to be refitted.
        configs: configurations that differ in their budgets alone; they must have passed the checks of `readiness.py`.

    Returns:
        What came of each configuration, the same as alone; of the seconds, each has its part.
    """
    fit, others = split_of(0 if calibration is None else len(calibration))
    seconds: dict[str, float] = {}
    with _timed(seconds, "dense passes"):
        refits = configs[0].compensation == "ridge"
        starts = dense_passes(model, groups, calibration, configs[0], fit) if refits else []
    held_out = None if calibration is None else calibration.part(others)
    with _timed(seconds, "search"), stage("search", loops=len(configs)):
        choices = [_chosen(model, groups, scores, config, starts=starts, held_out=held_out) for config in configs]
    with _timed(seconds, "rewrite"):
        cuts = [_cut(model, groups, choice.masks, config) for choice, config in zip(choices, configs, strict=True)]
    notes: dict[str, str] = {}
    with _timed(seconds, "compensation"), stage("compensation"):
        smaller = [place for place, choice in enumerate(choices) if not all(map(Tensor.all, choice.masks.values()))]
        if starts and smaller:
            pruned, masks = [cuts[place][0] for place in smaller], [choices[place].masks for place in smaller]
            notes = refit(model, pruned, groups, starts, masks=masks)
            give_back()  # holes that it left
    for (pruned, _), choice in zip(cuts, choices, strict=True):
        if choice.schedule is not None:  # after the refit, which compares dense and pruned tokens one by one
            merge_tokens_of(pruned, choice.schedule)
    models = [pruned for pruned, _ in cuts]
    with _timed(seconds, "divergence"), stage("divergence"):
        divergences = _divergences(model, models, groups, held_out, apart=fit != others)
    with _timed(seconds, "continuations"):
        continuations = [_continuations(model, pruned, held_out, apart=fit != others) for pruned in models]
    for pruned in models:
        set_apart(pruned, model)  # the last that they share: a table of embeddings is large
    if all(each is None for each in continuations):
        del seconds["continuations"]
    part = {name: each / len(configs) for name, each in seconds.items()}
    return [
        Pruned(
            pruned,
            structure,
            choice.output_weight,
            choice.schedule,
            divergence,
            part,
            notes if place in smaller else {},
            written,
            choice.timed,
        )
        for place, ((pruned, structure), choice, divergence, written) in enumerate(
            zip(cuts, choices, divergences, continuations, strict=True)
        )
    ]


def _chosen(
    model: PreTrainedModel,
    groups: Groups,
    scores: Scores,
    config: OptinConfig,
    *,
    starts: Sequence[Start | None],
    held_out: Calibration | None,
) -> Choice:
    """How to spend the budgets; timed, if one of them is of time."""
    choice = choose(model, groups, scores, config, starts=starts, held_out=held_out)
    return choice if config.latency is None else in_time(model, groups, scores, config, choice)


def _cut(
    model: PreTrainedModel, groups: Groups, masks: Masks, config: OptinConfig
) -> tuple[PreTrainedModel, Structure]:
    """A copy of the model that keeps what masks say, and what it keeps of the first dense model."""
    pruned = copy_of(model, apart=False)
    rewrite(pruned, groups, masks)
    structure = structure_of(groups, masks)
    if config.layout == "uniform":
        record_sizes(pruned, groups, masks)
    else:
        structure = record_structure(pruned, structure, groups)
    return pruned, structure


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
    """The report: what was asked for, kept and measured.

    Args:
        model: the dense model.
        groups: its groups.
        pruned: what `prune_model` made of it.
        scores: the scores that it was pruned by.
        config: the configuration that it was pruned with.
        calibration: the calibration that it was refitted and compared on; `None` if there was none.
        base: the dense model on the Hub; `None` if it came from elsewhere.
    """
    tokens = scores.tokens
    batch = probe_batch(model, tokens)
    with float_products(model):  # a pass of each is counted
        macs_dense, macs_pruned = count_macs(model, batch), count_macs(pruned.model, batch)
    units = total_cost(model, groups, tokens)
    return PruningReport(
        flops_requested=config.flops if is_share(config.flops) else None,
        # With a layer's last head, SwinV2 also saves what all of its heads share, and no unit pays for.
        flops_achieved=max(0.0, (units - (macs_dense - macs_pruned)) / units),
        tokens=tokens,
        macs_dense=macs_dense,
        macs_pruned=macs_pruned,
        params_dense=count_parameters(model),
        params_pruned=count_parameters(pruned.model),
        bytes_dense=count_bytes(model),
        bytes_pruned=count_bytes(pruned.model),
        **_peaks(model, pruned.model, tokens, config),
        layers=layers_of(pruned.structure),
        merges=pruned.schedule.to_json()["merges"] if pruned.schedule else {},
        left_whole=dict(groups.left_whole),
        seconds={"score": scores.seconds, **pruned.seconds},
        config=config.to_dict(),
        output_weight=pruned.output_weight,
        refit=pruned.refit,
        divergence=pruned.divergence,
        continuations=pruned.continuations,
        latency=None if pruned.timed is None else budgeted_latency(model, pruned.timed, tokens, config),
        calibration=None if calibration is None else {"samples": calibration.samples, **calibration.source},
        base=base,
    )


def _peaks(model: PreTrainedModel, pruned: PreTrainedModel, tokens: int, config: OptinConfig) -> dict[str, int]:
    """The memory of a pass, where that was asked for."""
    if config.memory_batch_size is None:
        return {}
    batch = samples_of(model, config.memory_length or tokens, config.memory_batch_size)
    return {"peak_dense": peak_bytes(model, batch), "peak_pruned": peak_bytes(pruned, batch)}


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds[stage] = time.perf_counter() - started


def split_of(batches: int) -> tuple[list[int], list[int]]:
    """Which batches to refit on, and which to measure divergence on; the same where there is only one."""
    if batches < 2:
        return list(range(batches)), list(range(batches))
    every = min(_HELD_OUT, batches)
    return [index for index in range(batches) if index % every], list(range(0, batches, every))


def _divergences(
    dense: PreTrainedModel,
    pruned: Sequence[PreTrainedModel],
    groups: Groups,
    held_out: Calibration | None,
    *,
    apart: bool,
) -> list[Divergence | None]:
    """The divergence of each, if there is something to measure it on; a collapse gives a warning."""
    if held_out is None:
        return [None] * len(pruned)
    divergences = measure_divergence(dense, pruned, groups, held_out, apart)
    for divergence in divergences:
        collapsed = divergence.agreement is not None and divergence.agreement < _COLLAPSE
        if collapsed and not (writes(dense) or predicts_next_token(dense)):  # of these, what they write tells more
            logger.warning(
                f"the pruned model's outputs agree with the dense model's to only {divergence.agreement:.0%} on "
                f"{divergence.samples} calibration samples: expect a large loss; ask for more flops."
            )
    return divergences


def _continuations(
    dense: PreTrainedModel, pruned: PreTrainedModel, held_out: Calibration | None, *, apart: bool
) -> Continuations | None:
    """What both models write, if they are language models; a collapse gives a warning."""
    if held_out is None:
        return None
    try:
        found = compare_continuations(dense, pruned, held_out.batches, apart)
    except Exception as error:  # whatever `generate` may raise: the work of an hour is not lost to a look at it
        logger.warning(f"what the models write could not be compared ({type(error).__name__}: {error}).")
        return None
    if found is not None and found.agreement < _COLLAPSE_OF_TEXT:
        logger.warning(
            f"the pruned model writes only {found.agreement:.0%} of the tokens that the dense model writes "
            f"{f'for {found.prompts} inputs' if found.answers else f'after {found.prompts} prompts'}: expect a large "
            "loss; ask for more flops."
        )
    return found
