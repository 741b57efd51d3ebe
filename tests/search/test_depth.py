"""Whole sublayers as candidates: which go, what stays, and that trial cuts choose among them."""

import dataclasses

import pytest
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.command_line.options import word_or_number
from optimum_optin.editing.stand_ins import StandIn
from optimum_optin.pricing.macs import cost_tables, dense_cost, kept_cost
from optimum_optin.readiness import proved_groups
from optimum_optin.search.candidates import ranked, sublayers_to_go
from optimum_optin.search.trials import Trials

CONFIG = OptinConfig(flops=0.5, probes=8, rows=16)


@pytest.fixture(scope="module")
def scored():
    """A pruner, its scores, and loss per MAC of each whole sublayer."""
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(), CONFIG)
    combined, costs = scores.combine(), cost_tables(pruner.model, proved_groups(pruner.model, CONFIG), scores.tokens)
    return pruner, scores, {key: float(combined[key].sum() / costs[key][-1]) for key in combined}


def kept(pruner):
    return {
        f"{layer}.{role}": each["kept"] for layer, roles in pruner.report.layers.items() for role, each in roles.items()
    }


@pytest.mark.parametrize("search", ["ranked", "measured"])
def test_the_cheapest_sublayers_go_whole_and_the_budget_is_met(scored, search):
    pruner, scores, worth = scored
    config = dataclasses.replace(CONFIG, depth=2, search=search)
    pruned = pruner.prune(scores=scores, config=config)
    left = kept(pruner)
    cheapest = sorted(worth, key=worth.get)
    assert {key for key in cheapest if left[key] == 0} >= {*cheapest[:2]}
    assert all(left[key] for key in left if key.endswith("heads") and key not in cheapest[:2]), (
        "min_heads=1 still holds"
    )
    assert 0.45 < pruner.report.flops_achieved <= 0.5
    assert sum(isinstance(each, StandIn) for each in pruned.modules()) >= 2
    plan = pruner.plan(scores, config=config)
    assert (
        search == "measured"
        or {key: plan.layers[key.rpartition(".")[0]][key.rpartition(".")[2]]["kept"] for key in left} == left
    )


def test_what_must_stay_does_not_go_whole(scored):
    pruner, scores, worth = scored
    first, second, third, *_ = sorted(worth, key=worth.get)
    config = dataclasses.replace(CONFIG, depth=1, exclude=[first], keep={second: [0]})
    assert sublayers_to_go(pruner.model, proved_groups(pruner.model, CONFIG), scores, config, None) == [(third,)]
    config = dataclasses.replace(CONFIG, depth=1, floors={first: 1})
    assert sublayers_to_go(pruner.model, proved_groups(pruner.model, CONFIG), scores, config, None) == [(second,)]
    config = dataclasses.replace(CONFIG, depth=4, flops=0.9, include=[first, second])
    with pytest.raises(ValueError, match="depth=4: of this model 2 sublayers may lose all their units"):
        pruner.prune(scores=scores, config=config)


def test_trial_cuts_choose_among_numbers_of_sublayers_and_layers(scored, monkeypatch):
    pruner, scores, worth = scored
    config = dataclasses.replace(CONFIG, depth="auto", compensation="none")
    groups = proved_groups(pruner.model, CONFIG)
    gone = sublayers_to_go(pruner.model, groups, scores, config, None)
    cheapest = sorted(worth, key=worth.get)
    assert gone[0] == () and [*gone[1:3]] == [tuple(cheapest[:1]), tuple(cheapest[:2])]
    assert any(
        {key.rpartition(".")[0] for key in each} == {each[0].rpartition(".")[0]} for each in gone if len(each) == 2
    )
    costs = cost_tables(pruner.model, groups, scores.tokens)
    for some in gone:
        masks = ranked(pruner.model, groups, scores, config, sublayers=some).masks
        assert not any(masks[key].any() for key in some)
        assert kept_cost(costs, masks) <= 0.5 * dense_cost(costs)
    tried = []

    def least(trials, choices):
        tried.append([choice.sublayers for choice in choices])
        return choices[-1] if len(tried) == 2 else choices[0]

    monkeypatch.setattr(Trials, "best", least)
    pruner.prune(scores=scores, config=config)
    assert tried[1] == gone and {*tried[2]} == {gone[-1]}
    assert all(kept(pruner)[key] == 0 for key in gone[-1])


def test_nothing_goes_whole_where_nothing_can_be_tried(scored, caplog):
    pruner, scores, _ = scored
    found = []
    for depth in ("none", "auto"):
        pruner.prune(scores=scores, config=dataclasses.replace(CONFIG, depth=depth, search="ranked"))
        found.append(kept(pruner))
    assert found[0] == found[1]
    assert "depth='auto' leaves out no whole sublayer" in caplog.text


def test_sublayers_that_leave_less_than_the_budget_are_not_tried(scored):
    pruner, scores, _ = scored
    config = dataclasses.replace(CONFIG, depth="auto", flops=0.999)
    assert sublayers_to_go(pruner.model, proved_groups(pruner.model, CONFIG), scores, config, None) == [()]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depth": "deep"}, "depth='deep' must be 'auto', 'none', or a number of sublayers"),
        ({"depth": -1}, "depth"),
        ({"depth": 2, "layout": "uniform"}, "depth is for layout='free'"),
    ],
)
def test_a_depth_that_is_none(fields, message):
    with pytest.raises(ValueError, match=message):
        OptinConfig(**fields)


def test_a_depth_on_the_command_line():
    assert [word_or_number(text) for text in ("auto", "4")] == ["auto", 4]
    assert OptinConfig.from_dict(OptinConfig(depth=4).to_dict()).depth == 4
