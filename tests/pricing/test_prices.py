"""Prices of several budgets, against models that were cut."""

import copy
import math

import pytest
import torch
from tiny import random_masks, tiny_batch, tiny_model
from toys import Bottlenecks, perturbed, pixels

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.config import BUDGETS
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.media.vision import image_tokens
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.pricing.macs import count_macs, dense_cost, matching_cost
from optimum_optin.pricing.prices import Price, prices_of
from optimum_optin.pricing.tensors import count_bytes, count_parameters
from optimum_optin.pricing.timetable import Timetable

MODELS = {  # and how many tokens a sample has
    "bert": (tiny_model, 9),
    "stream": (lambda: OptinPruner.from_model(perturbed(Bottlenecks()), pixels()).model, 64),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_budget_prices_a_model_as_what_it_is_when_it_is_cut(name):
    make, tokens = MODELS[name]
    model = make()
    groups, batch = find_groups(model), probe_batch(model, tokens)
    count = {"flops": lambda model: count_macs(model, batch), "params": count_parameters, "memory": count_bytes}
    shares = {"flops": 0.7, "params": 0.8, "memory": 0.9}
    units = {"flops": ("0.03MMACs", 0.03e6), "params": ("0.004M", 4e3), "memory": ("16KB", 16e3)}
    masks = random_masks(groups)
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    prices = prices_of(model, groups, tokens, OptinConfig(**shares), None)
    assert [price.name for price in prices] == [name for name in BUDGETS if name != "latency"]
    for price in prices:
        text, number = units[price.name]
        (asked,) = prices_of(model, groups, tokens, OptinConfig(**{price.name: text}), None)
        besides = count[price.name](model) - price.dense  # what no unit has a part in
        assert besides == pytest.approx(0) or (price.name == "flops" and besides > 0)
        assert price.cost_of({key: torch.ones_like(mask) for key, mask in masks.items()}) == pytest.approx(price.dense)
        assert price.cost_of(masks) + besides == pytest.approx(count[price.name](cut))
        assert price.sums == (name == "bert")
        assert price.limit == pytest.approx(shares[price.name] * price.dense)
        assert asked.limit + besides == pytest.approx(number)
        assert price.room == price.limit - price.fixed
        if price.sums:
            kept = sum(float(price.tables[key][int(mask.sum())]) for key, mask in masks.items())
            assert price.fixed + kept == pytest.approx(price.cost_of(masks))
            assert price.fixed + dense_cost(price.tables) == pytest.approx(price.dense)


def test_merging_tokens_costs_and_saves_macs_alone():
    model = tiny_model("vit")
    groups, tokens = find_groups(model), image_tokens(model, tiny_batch(model))
    schedule = TokenSchedule(1, {groups[0].layer: 3})
    flops, params = prices_of(model, groups, tokens, OptinConfig(flops=0.5, params=0.5), schedule)
    dense, _ = prices_of(model, groups, tokens, OptinConfig(flops=0.5, params=0.5), None)
    assert flops.fixed == matching_cost(model, groups, tokens, schedule) > 0 == dense.fixed
    assert (flops.dense, flops.limit) == (dense.dense, dense.limit), "shares are of the model that merges nothing"
    masks = random_masks(groups)
    assert flops.fixed < flops.cost_of(masks) < dense.cost_of(masks)
    kept = sum(float(flops.tables[key][int(mask.sum())]) for key, mask in masks.items())
    assert flops.cost_of(masks) == pytest.approx(flops.fixed + kept)
    assert params.cost_of(masks) < params.dense


@pytest.mark.parametrize("multiple", [1, 4])
def test_seconds_of_overlapping_groups_are_shares_of_the_macs_that_half_of_them_save(multiple, monkeypatch):
    make, tokens = MODELS["stream"]
    model = make()
    groups, batch = find_groups(model), probe_batch(model, tokens)
    timed = Timetable(seconds=8.0, stairs=(), saved=0.25, multiple=multiple, noise=0.0)
    monkeypatch.setattr("optimum_optin.pricing.prices.timetable_of", lambda *_: timed)
    (price,) = prices_of(model, groups, tokens, OptinConfig(latency=0.7), None)

    def saved(masks):
        """MACs."""
        cut = copy.deepcopy(model)
        rewrite(cut, groups, masks)
        return count_macs(model, batch) - count_macs(cut, batch)

    half = {group.key: torch.arange(group.units) % 2 == 0 for group in groups}
    per_mac = 0.25 * 8 / saved(half)
    assert price.cost_of(half) == pytest.approx(6)
    masks = random_masks(groups, share=0.7)
    wider = {key: torch.arange(len(mask)) < math.ceil(mask.sum() / multiple) * multiple for key, mask in masks.items()}
    assert any(wider[key].sum() > mask.sum() for key, mask in masks.items()) == (multiple > 1)
    assert price.cost_of(masks) == pytest.approx(8 - per_mac * saved(wider))
    for group in groups:
        whole = {each.key: torch.ones(each.units, dtype=torch.bool) for each in groups}
        of_one = per_mac * saved({**whole, group.key: torch.arange(group.units) > 0})
        assert float(price.tables[group.key][-1]) == pytest.approx(group.units * of_one)
    assert price.fixed + dense_cost(price.tables) == pytest.approx(price.dense) and price.dense == 8 and not price.sums


def test_a_budget_holds_what_is_more_by_rounding_alone():
    def price(cost):
        return Price("flops", {}, 0.0, 10.0, 3.0, lambda masks: cost, True)

    assert [price(3 * (1 + more)).holds({}) for more in (-0.1, 0, 5e-10, 5e-9, 1e-6)] == [True] * 3 + [False] * 2
