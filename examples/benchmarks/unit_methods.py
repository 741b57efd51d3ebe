"""Cuts of one model by our scores, at random and by magnitude, at the same share of the MACs of its units."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from channel_rankings import masks_within
from transformers import PreTrainedModel

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.architectures.group import Masks
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import dense_passes
from optimum_optin.pricing.macs import total_cost
from optimum_optin.readiness import proved_groups

METHODS = ("surgeon", "random", "magnitude")


class Harness:
    """One seed's calibration data, and what all methods share.

    Args:
        pruner: of the model.
        data: what `pruner.score` takes.
        config: the seed and the number of samples.
        auto: the auto class that loads the model.
    """

    def __init__(self, pruner: OptinPruner, data, config: OptinConfig, auto: type):
        self.pruner, self.model, self.config, self.auto = pruner, pruner.model, config, auto
        self.scores = pruner.score(data, config)
        self.groups = proved_groups(self.model, config)
        self.starts = dense_passes(self.model, self.groups, self.scores.calibration, config)

    def share(self, masks: Masks | None) -> float:
        """The MACs that masks keep."""
        return total_cost(self.model, self.groups, self.scores.tokens, masks=masks)

    def masks(self, method: str, budget: float) -> Masks:
        generator = torch.Generator().manual_seed(self.config.seed)
        found = {}
        for group in self.groups:
            columns = [self.model.get_submodule(each.path).weight.double().square().sum(0) for each in group.consumers]
            norms = sum(each.view(group.units, -1).sum(1) for each in columns)
            found[group.key] = torch.rand(group.units, generator=generator) if method == "random" else norms
        return masks_within(budget, found, True, self.share)

    def cut(self, method: str, budget: float, refitted: bool) -> tuple[PreTrainedModel, float]:
        """The cut model, and the share of MACs that it keeps."""
        if method == "surgeon":
            changes = {} if refitted else {"compensation": "none", "search": "ranked"}
            config = replace(self.config, flops=budget, **changes)
            with tempfile.TemporaryDirectory() as folder:
                self.pruner.prune(scores=self.scores, config=config, save_dir=Path(folder) / "pruned")
                cut = self.auto.from_pretrained(Path(folder) / "pruned").eval()
            return cut, self.pruner.report.flops_achieved
        masks = self.masks(method, budget)
        cut = copy.deepcopy(self.model)
        rewrite(cut, self.groups, masks)
        if refitted:
            refit(self.model, [cut], self.groups, self.starts, masks=[masks])
        return cut, self.share(masks) / self.share(None)
