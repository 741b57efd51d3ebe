"""Cuts of a convolutional network under the same budgets: ours, the paper's and those of others' rankings.

All remove channels of our groups, and are refitted on the same images. What `OptinPruner` makes is saved and loaded
again. Nothing is trained.
"""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from channel_rankings import RANKINGS, Images, masks_within
from torch import nn

from optimum_optin import OptinConfig, OptinPruner, Scores, load_pruned
from optimum_optin.architectures.group import Masks
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.models.plain import named_inputs
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.pricing.macs import count_macs, total_cost
from optimum_optin.readiness import proved_groups
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.structure import masks_of

METHODS = ("surgeon", "paper", *RANKINGS)


@dataclass(frozen=True)
class Cut:
    """A pruned network.

    Args:
        method: how its channels were chosen, one of `METHODS`.
        refitted: whether what is left was refitted.
        budget: the share of the MACs of all channels that was asked for.
        model: it; what `OptinPruner` made was loaded from disk.
        macs: MACs of one image, by PyTorch's counter.
        macs_counted: what the search took them for: the dense model's less what the channels that went cost.
        seconds: that choosing, cutting and refitting took, without scores; `None` where that was not timed.
        off: the largest difference in what the network returns before it is saved and after; `None` if it was not.
    """

    method: str
    refitted: bool
    budget: float
    model: nn.Module
    macs: int
    macs_counted: float
    seconds: float | None = None
    off: float | None = None

    def line(self, dense_macs: int) -> dict:
        """What is said of it in a line of results."""
        found = {"method": self.method, "refit": self.refitted, "budget": self.budget}
        found |= {"flops": self.macs / dense_macs, "flops_counted": self.macs_counted / dense_macs}
        return found | ({} if self.off is None else {"seconds": round(self.seconds, 1), "off": self.off})


def cuts(
    pruner: OptinPruner,
    train: Images,
    *,
    methods: Sequence[str] = METHODS,
    budgets: Sequence[float],
    config: OptinConfig,
    paper_samples: int = 16,
) -> Iterator[Cut]:
    """Every cut by every method, with and without refit.

    Args:
        pruner: of the dense network, a plain module.
        train: images and labels; labels are for Taylor's importances alone.
        methods: of `METHODS`.
        budgets: shares of the MACs of all channels to keep.
        config: of our scores, and of every refit; its budget does not count.
        paper_samples: images that the exhaustive scores of the paper see: they take a pass for every channel.
    """
    problem = _Problem(pruner, train, config)
    for method in methods:
        if method == "surgeon":
            yield from problem.ours(budgets)
        elif method == "paper":
            yield from problem.papers(paper_samples, budgets)
        else:
            yield from problem.ranked(method, budgets)


class _Problem:
    """What all cuts of a network share."""

    def __init__(self, pruner: OptinPruner, train: Images, config: OptinConfig) -> None:
        self.pruner, self.model, self.train, self.config = pruner, pruner.model, train, config
        self.groups = proved_groups(self.model, config)
        inputs = [named_inputs(self.model, part) for part in train[0].split(config.batch_size)]
        self.sample = named_inputs(self.model, train[0][:1])
        self.calibration = calibrate(self.model, inputs)
        self.dense_macs = count_macs(self.model, self.sample)
        self.units = total_cost(self.model, self.groups, self.calibration.tokens)

    @cached_property
    def starts(self) -> list:
        """What refits of baselines go by."""
        return dense_passes(self.model, self.groups, self.calibration, self.config)

    def ours(self, budgets: Sequence[float]) -> Iterator[Cut]:
        scores = self._scored("surgeon", self.config)
        without = {"compensation": "none", "search": "ranked"}  # trial cuts are refitted ones
        for budget in budgets:
            for changes in ({}, without):
                yield self._pruned("surgeon", budget, replace(self.config, flops=budget, **changes), scores)[0]

    def papers(self, samples: int, budgets: Sequence[float]) -> Iterator[Cut]:
        sizes = {"num_samples": samples, "batch_size": min(samples, self.config.batch_size)}
        config = OptinConfig.paper(seed=self.config.seed, **sizes)
        scores = self._scored("paper", config)
        for budget in budgets:
            cut, masks = self._pruned("paper", budget, replace(config, flops=budget), scores)
            yield cut
            yield self._refitted("paper", budget, cut.model, masks)  # on all images, not on those of the scores alone

    def ranked(self, method: str, budgets: Sequence[float]) -> Iterator[Cut]:
        generator = torch.Generator().manual_seed(self.config.seed)
        importances, everywhere = RANKINGS[method](self.model, self.groups, self.train, generator)
        for budget in budgets:
            masks = masks_within(budget, importances, everywhere, self._cost)
            cut = copy.deepcopy(self.model)
            rewrite(cut, self.groups, masks)
            yield self._cut(method, False, budget, cut, masks)
            yield self._refitted(method, budget, cut, masks)

    def _scored(self, method: str, config: OptinConfig) -> Scores:
        scores = self.pruner.score(self.train[0], config)
        print(f"{method}: scores took {scores.seconds:.0f} s", flush=True)
        return scores

    def _pruned(self, method: str, budget: float, config: OptinConfig, scores: Scores) -> tuple[Cut, Masks]:
        """What `OptinPruner` makes, saved and loaded again, and which units it kept."""
        started = time.perf_counter()
        pruned = self.pruner.prune(scores=scores, config=config)
        seconds = time.perf_counter() - started
        with tempfile.TemporaryDirectory() as folder:
            self.pruner.save_pretrained(folder)
            loaded = load_pruned(lambda: copy.deepcopy(self.model), folder).eval()
        masks, images = masks_of(structure_of_model(pruned), self.groups), self.train[0][:4]
        with torch.no_grad():
            off = float((pruned(images) - loaded(images)).abs().max())
        refitted = config.compensation == "ridge"
        return self._cut(method, refitted, budget, loaded, masks, seconds=seconds, off=off), masks

    def _refitted(self, method: str, budget: float, cut: nn.Module, masks: Masks) -> Cut:
        refitted = copy.deepcopy(cut)
        refit(self.model, [refitted], self.groups, self.starts, masks=[masks])
        return self._cut(method, True, budget, refitted, masks)

    def _cut(self, method: str, refitted: bool, budget: float, model: nn.Module, masks: Masks, **figures) -> Cut:
        counted = self.dense_macs - self.units + self._cost(masks)
        return Cut(method, refitted, budget, model, count_macs(model, self.sample), counted, **figures)

    def _cost(self, masks: Masks) -> float:
        return total_cost(self.model, self.groups, self.calibration.tokens, masks=masks)
