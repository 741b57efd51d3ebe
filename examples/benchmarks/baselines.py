"""The table of pruning methods: ours, and other papers' as baselines, all given the same data, costs and budgets.

A method is a function from a `Problem` to a function from a budget to a `Cut`: what to keep, and the method's own way
to repair what is left, if it has one. A new method is a new row of `METHODS`.
"""

import copy
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from kprune import prune_by_knowledge
from kwon import fisher_masks, label_gradients, tune_masks
from tasks import LabelledBatch, Task
from torch import Tensor
from transformers import PreTrainedModel

from optimum_optin import OptinConfig, OptinPruner, Scores, register_scorer
from optimum_optin.architectures.group import HEADS, Groups, Masks
from optimum_optin.discovery.find import find_groups
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.probes import mean_tokens
from optimum_optin.merging.schedule import constant_schedule, scored_schedule
from optimum_optin.passes.calibration import Calibration, calibrate
from optimum_optin.passes.hooks import observed
from optimum_optin.pricing.macs import cost_tables, dense_cost, token_costs
from optimum_optin.running.batch import Batch
from optimum_optin.running.forward import call_model
from optimum_optin.running.linears import drawn_places, rows_read, weight_of
from optimum_optin.scoring import score
from optimum_optin.search.candidates import ranked
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.record import convert_model
from optimum_optin.storage.structure import masks_of, structure_of

sys.path.insert(0, str(Path(__file__).parents[1]))
import random_scorer  # noqa: F401, registers "random"


@dataclass(frozen=True)
class Problem:
    """What every method gets.

    Args:
        model: the dense model; methods leave it as it is.
        groups: its groups.
        batches: calibration batches, without labels.
        label: gives the labels of the batches' rows, for methods that need them.
        costs: group key -> MACs of keeping n units, at the batches' mean length.
        seed: the seed that the batches were drawn with, for the method's own draws.
    """

    model: PreTrainedModel
    groups: Groups
    batches: Sequence[Batch]
    label: Callable[[], list[LabelledBatch]]
    costs: Mapping[str, Tensor]
    seed: int

    @property
    def calibration(self) -> Calibration:
        """The batches as our scorers and our refit take them."""
        return calibrate(self.model, self.batches)

    @property
    def dense_cost(self) -> float:
        """What keeping every unit costs."""
        return dense_cost(self.costs)


@dataclass(frozen=True)
class Cut:
    """A method's answer to a budget: masks, and its own repaired model if it makes one."""

    masks: Masks
    own: Callable[[], PreTrainedModel] | None = None


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Args:
        prepare: all that serves every budget; returns a function from MACs to a `Cut`.
        own: whether cuts come with the method's own repair.
        labels: whether it uses labels.
        only: `"images"` or `"texts"`, if it is for models of these alone.
    """

    prepare: Callable[[Problem], Callable[[float], Cut]]
    own: bool = False
    labels: bool = False
    only: str | None = None


def pose(task: Task, seed: int, samples: int = 512) -> Problem:
    """The problem of a task: calibration samples drawn with the seed."""
    model, groups = task.pruner.model, find_groups(task.pruner.model)
    batches = calibration_batches(task.calibration, model, task.pruner.processor, num_samples=samples, seed=seed)
    costs = cost_tables(model, groups, mean_tokens(batches, model))
    return Problem(model, groups, batches, lambda: task.label(batches, seed), costs, seed)


def by_scorer(name: str, **options):
    """Ranked search on the scores of one of the package's scorers.

    Args:
        name: the scorer.
        **options: fields of `OptinConfig`.
    """

    def prepare(problem):
        config = OptinConfig(scorer=name, seed=problem.seed, **options)
        return _searcher(problem, score(problem.model, problem.groups, problem.calibration, config))

    return prepare


def by_default(**options):
    """`OptinPruner` as its users get it: its own cut is what `prune` returns.

    Args:
        **options: fields of `OptinConfig`.
    """

    def prepare(problem):
        pruner = OptinPruner(problem.model)
        config = OptinConfig(seed=problem.seed, **options)
        scores = score(problem.model, problem.groups, problem.calibration, config)

        def cut(budget):
            pruned = pruner.prune(scores=scores, config=replace(config, flops=budget / problem.dense_cost))
            return Cut(masks_of(structure_of_model(pruned), problem.groups), lambda: pruned)

        return cut

    return prepare


def by_merging(scored):
    """Token merging alone: where the scores say, or equally much after every layer (ToMe).

    Args:
        scored: which of both.
    """

    def prepare(problem):
        config = OptinConfig(seed=problem.seed, merging="auto")
        costs = token_costs(problem.model, problem.groups, mean_tokens(problem.batches, problem.model))
        scores = score(problem.model, problem.groups, problem.calibration, config) if scored else None
        losses = scores and {layer: loss.tolist() for layer, loss in scores.combine_merges().items()}
        masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in problem.groups}

        def cut(budget):
            schedule = scored_schedule(costs, losses, budget) if scored else constant_schedule(costs, budget)
            model = copy.deepcopy(problem.model)
            convert_model(model, structure_of(problem.groups, masks), schedule)
            return Cut(masks, lambda: model)

        return cut

    return prepare


def by_saved_scores(folder):
    """The package's search on scores from disk, the same for every seed."""

    def prepare(problem):
        scores = Scores.from_pretrained(folder)
        scores.check(problem.model)
        return _searcher(problem, scores)

    return prepare


def by_label_fisher(floors=None):
    """Kwon et al. 2022, complete: Fisher of the labelled loss, search, rearrangement; its repair is mask tuning.

    Args:
        floors: role -> units that every layer keeps at least; the paper has none.
    """

    def prepare(problem):
        gradients = label_gradients(problem.model, problem.groups, problem.label())

        def cut(budget):
            masks = fisher_masks(gradients, problem.costs, budget, floors)
            return Cut(masks, lambda: tune_masks(problem.model, problem.groups, masks, problem.batches))

        return cut

    return prepare


def kprune(problem):
    """K-prune 2024, complete; it repairs as it prunes, so its masks cost as much as its model."""

    def cut(budget):
        model, masks = prune_by_knowledge(problem.model, problem.groups, problem.batches, problem.costs, budget)
        return Cut(masks, lambda: model)

    return cut


METHODS = {
    "default": Method(by_default(), own=True),
    "auto": Method(by_default(merging="auto"), own=True, only="images"),
    "unrepaired": Method(by_default(compensation="none"), own=True),
    "tokens": Method(by_merging(scored=True), own=True, only="images"),
    "constant": Method(by_merging(scored=False), own=True, only="images"),
    "mixed": Method(by_scorer("surgeon")),
    "trajectory": Method(by_scorer("surgeon", output_weight=0.0)),
    "output": Method(by_scorer("surgeon", output_weight=1e6)),
    "gauss_newton": Method(by_scorer("gauss_newton")),
    "kwon": Method(by_label_fisher(), own=True, labels=True, only="texts"),
    "kwon-floor": Method(by_label_fisher({HEADS: OptinConfig().min_heads}), own=True, labels=True, only="texts"),
    "kprune": Method(kprune, own=True, only="texts"),
    "activation": Method(by_scorer("activation")),
    "magnitude": Method(by_scorer("magnitude")),
    "random": Method(by_scorer("random")),
}


def _searcher(problem, scores):
    def cut(budget):
        config = replace(scores.config, flops=budget / problem.dense_cost)
        return Cut(ranked(problem.model, problem.groups, scores, config).masks)

    return cut


@register_scorer("magnitude")
def score_magnitude(model, groups, calibration, config):
    """Squared norm of the consumers' columns."""
    return {"trajectory": {group.key: sum(_column_squares(model, group)) for group in groups}}


@register_scorer("activation")
@torch.no_grad()
def score_activation(model, groups, calibration, config):
    """Squared norm of the consumers' columns times their inputs' mean square (in the manner of Wanda)."""
    scores = {group.key: torch.zeros(group.units, dtype=torch.float64) for group in groups}
    generator = torch.Generator().manual_seed(config.seed)
    for batch in calibration:
        with observed(model, [each.path for group in groups for each in group.consumers]) as seen:
            call_model(model, batch)
        for group in groups:
            for consumer in group.consumers:
                module, passage = model.get_submodule(consumer.path), seen[consumer.path]
                rows = rows_read(module, passage.input, drawn_places(module, passage.output, generator))
                squares = weight_of(module).double().square().sum(0) * rows.flatten(0, -2).double().square().sum(0)
                scores[group.key] += squares.view(group.units, -1).sum(1).cpu()
    return {"trajectory": scores}


def _column_squares(model, group):
    """For each consumer, the squared norm of the columns of each unit."""
    weights = (weight_of(model.get_submodule(consumer.path)) for consumer in group.consumers)
    return [weight.double().square().sum(0).view(group.units, -1).sum(1).cpu() for weight in weights]
