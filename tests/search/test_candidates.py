"""Candidates, of scores made up: what is kept against the search itself, schedules against all that there are."""

import dataclasses

import pytest
import torch
from tiny import tiny_model

from optimum_optin import OptinConfig, Scores, find_groups
from optimum_optin.merging.schedule import TokenSchedule, constant_schedule, scored_schedule
from optimum_optin.pricing.macs import token_costs, total_cost
from optimum_optin.pricing.prices import prices_of
from optimum_optin.search import candidates
from optimum_optin.search.candidates import (
    check_token_scores,
    fixed_schedule,
    ranked,
    schedules,
    sublayers_to_go,
)
from optimum_optin.search.depth import depths
from optimum_optin.search.masks import search, search_uniform
from optimum_optin.search.selection import limits_of

TOKENS = 17  # of the tiny ViT's pictures
AUTO = OptinConfig(flops=0.6, merging="auto")


@pytest.fixture(scope="module")
def vit():
    model = tiny_model("vit")
    return model, find_groups(model)


def _scores(groups, config=AUTO, *, merges=True):
    torch.manual_seed(1)
    terms = {
        name: {group.key: torch.rand(group.units).double() for group in groups} for name in ("trajectory", "output")
    }
    losses = {"output": {f"layers.{layer}": torch.rand(8).double().cumsum(0) for layer in range(2)}} if merges else {}
    return Scores(terms, config, "", TOKENS, 0.0, losses)


@pytest.mark.parametrize("layout", ["free", "uniform"])
@pytest.mark.parametrize("weight", [None, 0.0, 3.0])
def test_what_is_kept_is_what_the_search_finds_by_combined_scores(vit, layout, weight):
    model, groups = vit
    config = OptinConfig(flops=0.6, layout=layout, output_weight=2.0, min_heads=1, min_neurons=3)
    scores = _scores(groups, config)
    schedule = TokenSchedule(1, {"layers.0": 2})
    found = ranked(model, groups, scores, config, schedule=schedule, output_weight=weight)
    assert found.output_weight == (2.0 if weight is None else weight)
    assert (found.schedule, found.sublayers, found.timed) == (schedule, (), None)
    (price,) = prices_of(model, groups, TOKENS, config, schedule)
    find = search if layout == "free" else search_uniform
    limits = limits_of(config, groups)
    expected = find(scores.combine(found.output_weight), price.tables, price.room, limits)
    assert found.masks.keys() == expected.keys()
    assert all(torch.equal(mask, expected[key]) for key, mask in found.masks.items())


def test_sublayers_keep_nothing_and_floors_are_kept(vit, monkeypatch):
    model, groups = vit
    scores = _scores(groups)
    found = ranked(model, groups, scores, AUTO, sublayers=("layers.1.heads",))
    assert found.sublayers == ("layers.1.heads",)
    assert not found.masks["layers.1.heads"].any() and found.masks["layers.0.heads"].any()
    monkeypatch.setattr(candidates, "within", lambda *_, **__: {each.key: each.first(0) for each in groups})
    with pytest.raises(ValueError, match="below its floor of 1"):
        ranked(model, groups, scores, AUTO)


@pytest.mark.parametrize(("budgets", "at_once"), [({"flops": 0.6}, 2**24), ({"flops": 0.6, "params": 0.7}, 2**16)])
def test_many_searches_try_fewer_combinations_each(vit, budgets, at_once, monkeypatch):
    model, groups = vit
    tried = set()

    def spied(scores, costs, budget, floors, combinations):
        tried.add(combinations)
        return search(scores, costs, budget, floors, combinations)

    monkeypatch.setattr(candidates, "search", spied)
    config = OptinConfig(**budgets)
    found = ranked(model, groups, _scores(groups, config), config)
    assert tried == {at_once}
    assert all(price.holds(found.masks) for price in prices_of(model, groups, TOKENS, config, None))


def test_of_mixtures_the_one_whose_units_are_worth_most_is_taken(vit, monkeypatch):
    model, groups = vit
    scores = _scores(groups)
    most = [{group.key: group.first(count) for group in groups} for count in (1, 2)]
    monkeypatch.setattr(candidates, "within", lambda prices, find, worth: max(most, key=worth))
    assert ranked(model, groups, scores, AUTO).masks is most[1]


def test_sublayers_that_may_go_are_those_of_the_first_budget(vit):
    model, groups = vit
    scores = _scores(groups)
    schedule = TokenSchedule(1, {"layers.0": 5})
    assert sublayers_to_go(model, groups, scores, AUTO, schedule) == [()]
    config = dataclasses.replace(AUTO, flops=0.75, depth="auto", output_weight=2.0)
    found = []
    for merged in (None, schedule):
        price, *_ = prices_of(model, groups, TOKENS, config, merged)
        expected = depths(tuple(groups), scores.combine(2.0), price.tables, price.room, config)
        assert sublayers_to_go(model, groups, scores, config, merged) == expected
        found.append(len(expected))
    assert found[0] > found[1] == 1, "what merging saves, sublayers need not"


@pytest.mark.parametrize("wanted", ["auto", "none"])
@pytest.mark.parametrize("scored", ["auto", "none"])
def test_schedules_take_scores_of_tokens(vit, wanted, scored):
    model, groups = vit
    scores = _scores(groups, dataclasses.replace(AUTO, merging=scored))
    config = dataclasses.replace(AUTO, merging=wanted)
    if (wanted, scored) == ("auto", "none"):
        with pytest.raises(ValueError, match="hold no scores of tokens, which merging='auto' needs"):
            check_token_scores(model, config, scores)
    else:
        check_token_scores(model, config, scores)


def test_a_schedule_in_numbers_is_taken_as_it_is(vit):
    model, groups = vit
    scores = _scores(groups)
    for merging, expected in (
        ("auto", None),
        ("none", None),
        ([0, 0, 0], None),
        ([2, 0, 0], TokenSchedule(1, {"layers.0": 2, "layers.1": 0, "layers.2": 0})),
    ):
        config = dataclasses.replace(AUTO, merging=merging)
        assert fixed_schedule(model, groups, config, TOKENS) == expected
        if merging != "auto":
            assert schedules(model, groups, scores, config) == [expected]
    for merging, message in (([1, 0], "must have a number for each of the model's 3 layers"), ([9, 0, 0], "layers.0")):
        with pytest.raises(ValueError, match=message):
            fixed_schedule(model, groups, dataclasses.replace(AUTO, merging=merging), TOKENS)
    with pytest.raises(ValueError, match="merg"):
        fixed_schedule(tiny_model(), find_groups(tiny_model()), dataclasses.replace(AUTO, merging=[1, 0, 0]), 9)


@pytest.mark.parametrize(
    ("flops", "heads", "neurons", "left"),
    [(0.3, 1, 1, 2), (0.5, 1, 1, 5), (0.5, 2, 48, 3), (0.5, 3, 40, 1), (0.5, 4, 48, 0)],
)
def test_schedules_are_all_that_leave_enough_for_what_must_stay(vit, flops, heads, neurons, left):
    model, groups = vit
    config = dataclasses.replace(AUTO, flops=flops, min_heads=heads, min_neurons=neurons)
    scores = _scores(groups, config)
    costs = token_costs(model, groups, TOKENS)
    losses = {layer: loss.tolist() for layer, loss in scores.combine_merges().items()}
    dense = costs.of(TokenSchedule(1))
    least = {group.key: group.first(heads if group.role == "heads" else neurons) for group in groups}
    made, afforded = [], []
    for part in (0.25, 0.5, 0.75):
        budget = dense * flops**part
        made += [scored_schedule(costs, losses, budget), constant_schedule(costs, budget)]
    made = [each for each in made if each is not None and any(each.merges.values())]
    for each in made:
        fits = total_cost(model, groups, TOKENS, each, least) <= flops * total_cost(model, groups, TOKENS)
        if fits and each not in afforded:
            afforded.append(each)
    assert schedules(model, groups, scores, config) == [None, *afforded]
    assert schedules(model, groups, _scores(groups, config, merges=False), config) == [None]
    assert len(afforded) == left
