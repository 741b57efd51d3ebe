"""Timetables, against a clock that goes by the shapes of models."""

import copy
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny import random_masks, tiny_model
from toys import Bottlenecks, perturbed, pixels

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.pricing import timetables
from optimum_optin.pricing.prices import prices_of
from optimum_optin.pricing.timetables import timetable_of
from optimum_optin.search.masks import search

WIDE = {"intermediate_size": 256, "num_hidden_layers": 2}


def _price(model, groups, **fields):
    (price,) = prices_of(model, groups, 9, OptinConfig(**{"latency": 0.7, **fields}), None)
    return price


@pytest.mark.parametrize("seed", range(3))
def test_a_cut_model_takes_what_its_price_says(seed, clock_of):
    clock, model = clock_of(), tiny_model()
    groups = find_groups(model)
    price = _price(model, groups)
    torch.manual_seed(seed)
    masks = random_masks(groups)
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    assert price.dense == pytest.approx(clock.seconds(model))
    assert price.cost_of(masks) == pytest.approx(clock.seconds(cut), rel=1e-4)
    assert price.limit == pytest.approx(0.7 * price.dense)
    assert all((table.diff() > 0).all() and table[0] == 0 for table in price.tables.values())
    kept = sum(float(price.tables[key][int(mask.sum())]) for key, mask in masks.items())
    assert price.fixed + kept == pytest.approx(price.cost_of(masks)) and price.sums
    assert _price(model, groups, latency="2ms").limit == 2e-3


@pytest.mark.parametrize("multiple", [1, 2])
def test_where_groups_overlap_time_follows_macs(multiple, clock_of):
    clock_of(multiple=multiple)
    model = OptinPruner.from_model(perturbed(Bottlenecks()), pixels()).model
    groups = find_groups(model)
    (price,) = prices_of(model, groups, 64, OptinConfig(latency=0.7), None)
    assert not price.sums and timetable_of(model, groups, 64, OptinConfig(latency=0.7)).multiple == multiple
    assert price.cost_of({group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}) == price.dense
    less = {group.key: group.first(group.units - 1) for group in groups}
    assert (price.cost_of(less) == price.dense) == (multiple == 2), "one unit less is no faster on stairs of two"
    assert price.cost_of({group.key: group.every_other() for group in groups}) < 0.95 * price.dense
    assert all((table.diff() > 0).all() for table in price.tables.values())


def test_widths_that_are_no_faster_are_not_chosen(clock_of):
    """On stairs, a cut to a multiple takes no longer than one to any number below it, and keeps more."""
    clock = clock_of(slow=0.1)
    model = tiny_model("bert", **WIDE)
    groups = find_groups(model)
    table = timetable_of(model, groups, 9, OptinConfig(latency=0.5))
    assert {each.groups[0]: each.multiple for each in table.stairs} == {"layers.0.heads": 1, "layers.0.neurons": 2}
    price = _price(model, groups)
    scores = {group.key: torch.rand(group.units).sort(descending=True).values for group in groups}
    masks = search(scores, price.tables, price.room)
    assert all(int(mask.sum()) % 2 == 0 for key, mask in masks.items() if "neurons" in key)
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    assert clock.seconds(cut) <= price.limit * (1 + 1e-4)


def test_a_timetable_is_measured_once_for_each_number_of_threads(clock_of, monkeypatch, caplog):
    """What else is kept, and for what: `test_kept_timetables.py`."""
    clock, model = clock_of(), tiny_model()
    config, groups = OptinConfig(latency=0.5), find_groups(model)
    first = timetable_of(model, groups, 9, config)
    passes = clock.passes
    assert timetable_of(model, groups, 9, config) is first
    again = copy.deepcopy(model)
    assert timetable_of(again, groups, 9, config) == first and clock.passes == passes > 0
    monkeypatch.setattr(timetables.torch, "get_num_threads", lambda: 7)
    assert timetable_of(again, groups, 9, config).seconds == pytest.approx(first.seconds)
    assert clock.passes == 2 * passes
    assert "of another machine or set-up (threads 1, now 7): it is measured again" in caplog.text


def test_times_that_vary_are_told_and_not_kept(clock_of, caplog):
    clock_of(jitter=0.5)
    model = tiny_model()
    timetable_of(model, find_groups(model), 9, OptinConfig(latency=0.5))
    assert "times on this machine vary by ±" in caplog.text
    assert not Path(constants.HF_HOME).exists()
    clock_of(jitter=9.0)
    other = tiny_model()
    with pytest.raises(ValueError, match=r"vary too much to keep a budget of latency: by ±\d+% .*OMP_NUM_THREADS"):
        timetable_of(other, find_groups(other), 9, OptinConfig(latency=0.5))
