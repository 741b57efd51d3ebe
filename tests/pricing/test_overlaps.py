"""Costs of groups that overlap: what is left of every weight, against PyTorch's counter on models that were cut."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import Bottlenecks, Pictures, perturbed, pixels

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.architectures.group import Groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.pricing import overlaps
from optimum_optin.pricing.macs import cost_tables, count_macs, dense_cost, total_cost
from optimum_optin.pricing.overlaps import apart, joined, overlapping, overlapping_weights
from optimum_optin.pricing.unit_costs import macs_of_modules

MODULES = {"in a chain": Pictures, "around a stream": Bottlenecks}
TOKENS = {"in a chain": 16 * 16, "around a stream": 8 * 8}


@pytest.mark.parametrize("case", MODULES)
def test_what_is_left_is_what_is_counted(case):
    model = OptinPruner.from_model(perturbed(MODULES[case]()), pixels()).model
    groups, tokens = find_groups(model), TOKENS[case]
    assert overlapping(groups)
    assert not apart(groups).members or case == "in a chain"
    dense, whole = total_cost(model, groups, tokens), count_macs(model, pixels())
    assert dense <= whole
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        masks = {group.key: torch.rand(group.units, generator=generator) < 0.6 for group in groups}
        for mask in masks.values():
            mask[0] = True
        cut = copy.deepcopy(model)
        rewrite(cut, groups, masks)
        assert dense - total_cost(model, groups, tokens, masks=masks) == pytest.approx(
            whole - count_macs(cut, pixels())
        )


def test_units_cost_what_goes_with_them_from_the_dense_model():
    model = OptinPruner.from_model(perturbed(Bottlenecks()), pixels()).model
    groups = find_groups(model)
    tokens = TOKENS["around a stream"]
    tables = cost_tables(model, groups, tokens)
    for group in groups:
        mask = torch.ones(group.units, dtype=torch.bool)
        mask[1] = False
        left = total_cost(model, groups, tokens, masks={group.key: mask})
        assert float(tables[group.key][1]) == pytest.approx(total_cost(model, groups, tokens) - left)
    assert dense_cost(tables) > total_cost(model, groups, tokens)  # which is why a search must count


def test_groups_overlap_where_they_own_two_dimensions_of_one_weight(monkeypatch):
    """By hand: `a` is between x and y, of `b` only z owns a dimension."""
    model = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(3, 5)})
    dims = {
        "a.weight": {0: {"x": 1.0}, 1: {"y": 2.0}},
        "a.bias": {0: {"x": 1.0}, 1: {"z": 1.0}},
        "b.weight": {0: {"z": 1.0}},
    }
    members = (SimpleNamespace(key=key, units=units) for key, units in {"x": 2, "y": 2, "z": 5}.items())
    groups = Groups(tuple(members), {}, {})
    monkeypatch.setattr(overlaps, "_dims", lambda _: dims)
    monkeypatch.setattr(overlaps, "macs_of_modules", lambda *_: {"a": 80.0, "b": 90.0})
    assert overlapping(groups) == {"x", "y"}
    assert [each.key for each in joined(groups)] == ["x", "y"] and [each.key for each in apart(groups)] == ["z"]
    (weight,) = overlapping_weights(model, groups, {})
    assert weight.amount == 80
    masks = {"x": torch.tensor([True, False]), "y": torch.tensor([True, True])}
    assert weight.left(masks) == 40 and weight.of_unit("x") == weight.of_unit("y") == 40


def test_what_multiplies_nothing_costs_nothing(monkeypatch):
    model = OptinPruner.from_model(perturbed(Bottlenecks()), pixels()).model
    groups = find_groups(model)
    counted = macs_of_modules(model, pixels())
    whole = overlapping_weights(model, groups, pixels())
    for path in counted:
        monkeypatch.setattr(overlaps, "macs_of_modules", lambda *_, gone=path: {**counted, gone: 0})
        without = overlapping_weights(model, groups, pixels())
        monkeypatch.setattr(
            overlaps, "macs_of_modules", lambda *_, gone=path: {key: counted[key] for key in counted if key != gone}
        )
        assert overlapping_weights(model, groups, pixels()) == without
        lost = [one.amount for one, other in zip(whole, without, strict=True) if one != other]
        assert lost in ([], [counted[path]])
    monkeypatch.setattr(overlaps, "macs_of_modules", lambda *_: {})
    with pytest.raises(ValueError, match=f"{min(overlapping(groups))} costs nothing: no module that holds"):
        overlapping_weights(model, groups, pixels())


@pytest.mark.parametrize("flops", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("case", MODULES)
def test_a_budget_is_spent_as_it_was_asked_for(case, flops):
    torch.manual_seed(0)
    pruner = OptinPruner.from_model(perturbed(MODULES[case]()), pixels())
    samples = [{"pixels": torch.randn(3, 16, 16)} for _ in range(24)]
    pruner.prune(samples, OptinConfig(flops=flops, probes=8, batch_size=8))
    report = pruner.report
    assert flops - 0.15 < report.flops_achieved <= flops + 1e-6
