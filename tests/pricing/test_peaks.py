"""Peaks of memory, against sums by hand and passes with real tensors."""

import copy

import pytest
import torch
from tiny import random_masks, tiny_batch, tiny_model, tiny_samples
from torch import nn
from toys import Bottlenecks, perturbed, pixels

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.pricing import skeletons
from optimum_optin.pricing.peaks import peak_bytes
from optimum_optin.pricing.prices import prices_of

FLOAT = 4


class _Wide(nn.Module):
    """From 10 numbers to 1,000 and back, with both there at once; the first are in use to the end."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(10, 1000, bias=False), nn.Linear(1000, 10, bias=False)

    def forward(self, x):
        return x + self.down(self.up(x))


def test_the_peak_is_where_most_tensors_are_alive():
    weights, inputs, wide, narrow = (FLOAT * count for count in (20_000, 50, 5000, 50))
    model = OptinPruner.from_model(_Wide(), torch.randn(2, 10)).model
    assert peak_bytes(model, {"x": torch.randn(5, 10)}) == weights + inputs + wide + narrow
    groups = find_groups(model)
    half = {group.key: group.every_other() for group in groups}
    assert [group.units for group in groups] == [1000]
    assert peak_bytes(model, {"x": torch.randn(5, 10)}, groups, half) == weights / 2 + inputs + wide / 2 + narrow


@pytest.mark.parametrize("name", ["bert", "swin", "clip"])
def test_what_is_counted_on_shapes_is_what_real_tensors_take(name, monkeypatch):
    model = tiny_model(name)
    batch, groups = tiny_batch(model), find_groups(model)
    masks = random_masks(groups)
    counted = peak_bytes(model, batch, groups, masks)
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    assert counted == peak_bytes(cut, batch) < peak_bytes(model, batch)

    def fail(*_):
        raise RuntimeError("no shapes")

    monkeypatch.setattr(skeletons, "skeleton", fail)
    assert peak_bytes(model, batch, groups, masks) == counted


@pytest.mark.parametrize("make", [tiny_model, lambda: OptinPruner.from_model(perturbed(Bottlenecks()), pixels()).model])
def test_a_budget_of_the_memory_of_a_pass_prices_the_cut_model(make):
    model = make()
    groups, tokens = find_groups(model), 64 if isinstance(model, Bottlenecks) else 9
    config = OptinConfig(memory=0.8, memory_batch_size=4)
    (price,) = prices_of(model, groups, tokens, config, None)
    batch = {name: torch.cat([value] * 4) for name, value in probe_batch(model, tokens).items()}
    assert price.dense == peak_bytes(model, batch) and price.limit == 0.8 * price.dense and not price.sums
    assert price.fixed == price.dense - sum(float(table[-1]) for table in price.tables.values())
    masks = random_masks(groups)
    assert price.cost_of(masks) == peak_bytes(model, batch, groups, masks)


def test_a_pruned_model_takes_no_more_memory_than_asked():
    config = OptinConfig(memory=0.8, memory_batch_size=32, memory_length=20, probes=8, search="ranked", num_samples=16)
    pruner = OptinPruner(tiny_model(), config=config)
    pruned = pruner.prune(tiny_samples(16))
    batch = {name: torch.cat([value] * 32) for name, value in probe_batch(pruner.model, 20).items()}
    report = pruner.report
    assert (report.peak_dense, report.peak_pruned) == (peak_bytes(pruner.model, batch), peak_bytes(pruned, batch))
    assert 0.7 < report.peak_pruned / report.peak_dense <= 0.8
    assert "memory of a pass of 32 x 20 tokens: " in str(report)
