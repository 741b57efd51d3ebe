"""Where a search is decided by a hair: ties, floors, heads against neurons, the rounding of a budget."""

import dataclasses
import functools
import itertools
import random

import pytest
import torch
from problems import gained, spent, steps_of

from optimum_optin import OptinConfig
from optimum_optin.architectures.group import Consumer, Cut, Group
from optimum_optin.pricing.prices import Price
from optimum_optin.search import masks
from optimum_optin.search.depth import depths, without
from optimum_optin.search.limits import Limit, levelled, numbers_of
from optimum_optin.search.masks import check_budget, check_kept, minimum_cost, search, search_uniform
from optimum_optin.search.ranking import _between, _corners, _in_order, level, rank, together, topped_up
from optimum_optin.search.within import within

BOTH = pytest.mark.parametrize("find", [search, search_uniform], ids=["free", "uniform"])


def _table(units, cost=1.0):
    return torch.arange(units + 1).double() * cost


def _kept(found):
    return {key: mask.nonzero().flatten().tolist() for key, mask in found.items()}


@BOTH
@pytest.mark.parametrize("units", range(1, 8))
def test_a_budget_may_be_short_by_rounding_and_no_more(find, units):
    """0.1 * 3 is more than 0.3, and 0.29 * 100 less than 29."""
    scores = {"layers.0.neurons": torch.ones(9)}
    costs = {"layers.0.neurons": _table(9, 0.1)}
    for budget in (units / 10, 0.1 * units * (1 - 1e-12)):
        assert int(find(scores, costs, budget)["layers.0.neurons"].sum()) == units
        assert int(find(scores, costs, budget, {"neurons": units})["layers.0.neurons"].sum()) == units
    short = 0.1 * units * (1 - 1e-6)
    with pytest.raises(ValueError, match="below the minimum"):
        find(scores, costs, short, {"neurons": units})
    if units > 1:
        assert int(find(scores, costs, short)["layers.0.neurons"].sum()) == units - 1


@pytest.mark.parametrize("role", ["heads", "neurons", "channels"])
def test_of_equal_units_those_of_earlier_groups_stay(role):
    scores = {f"layers.{layer}.{role}": torch.ones(2) for layer in (0, 1, 10)}
    costs = {key: _table(2) for key in scores}
    found = search(scores, costs, 3.0)
    assert _kept(found) == {f"layers.0.{role}": [0, 1], f"layers.1.{role}": [0], f"layers.10.{role}": []}
    uniform = search_uniform(scores, costs, 5.0)
    assert set(map(str, _kept(uniform).values())) == {"[0]"}


@BOTH
def test_of_equal_totals_more_heads_stay_and_no_more_than_that(find):
    costs = {"layers.0.heads": _table(3, 2.0), "layers.0.neurons": _table(6)}
    scores = {"layers.0.heads": 2 * torch.ones(3), "layers.0.neurons": torch.ones(6)}
    assert [len(kept) for kept in _kept(find(scores, costs, 7.0)).values()] == [3, 1]
    scores["layers.0.neurons"] += 1e-3  # six of them leave room for no head
    assert [len(kept) for kept in _kept(find(scores, costs, 7.0)).values()] == [1, 5]


@BOTH
@pytest.mark.parametrize("seed", range(12))
def test_heads_and_neurons_share_a_budget_in_the_best_way(find, seed):
    """One layer of each: against a loop over all numbers of heads and neurons."""
    draw = random.Random(seed)
    prices = draw.choice([(7.0, 2.0), (2.0, 7.0), (1.0, 1.0), (0.3, 0.1)])
    floors = {"heads": draw.randint(0, 2), "neurons": draw.randint(0, 3)}
    scores = {
        f"layers.0.{role}": torch.tensor([draw.randint(0, 4) for _ in range(units)]).double()
        for role, units in (("heads", 4), ("neurons", 7))
    }
    costs = {key: _table(len(score), price) for (key, score), price in zip(scores.items(), prices, strict=True)}
    for budget in (draw.uniform(0, 4 * prices[0] + 7 * prices[1]) for _ in range(8)):
        best = None
        for numbers in itertools.product(range(floors["heads"], 5), range(floors["neurons"], 8)):
            total = sum(
                float(score.sort(descending=True).values[:count].sum())
                for score, count in zip(scores.values(), numbers, strict=True)
            )
            price = sum(number * price for number, price in zip(numbers, prices, strict=True))
            if price <= budget and (best is None or (total, numbers) > best):
                best = total, numbers
        if best is None or max(best[1]) == 0:
            with pytest.raises(ValueError, match="below the minimum"):
                find(scores, costs, budget, floors)
            continue
        found = find(scores, costs, budget, floors)
        assert gained(found, scores) == pytest.approx(best[0])
        assert int(found["layers.0.heads"].sum()) == best[1][0]
        assert spent(found, costs) <= budget


@BOTH
def test_a_floor_keeps_the_best_of_a_group_that_is_worth_nothing(find):
    scores = {"layers.0.heads": torch.tensor([0.0, 2.0, 1.0]), "layers.1.heads": torch.tensor([9.0, 8.0, 7.0])}
    costs = {key: _table(3) for key in scores}
    found = find(scores, costs, 4.0, {"heads": 2})
    assert _kept(found) == {"layers.0.heads": [1, 2], "layers.1.heads": [0, 1]}
    assert _kept(search(scores, costs, 3.0, {"layers.0.heads": Limit(1)})) == {
        "layers.0.heads": [1],
        "layers.1.heads": [0, 1],
    }


def test_units_are_ranked_by_score_per_cost():
    """A unit of half the score at a third of the cost goes first."""
    scores = {"layers.0.heads": torch.tensor([2.0, 2.0]), "layers.1.heads": torch.tensor([1.0, 1.0])}
    costs = {"layers.0.heads": _table(2, 3.0), "layers.1.heads": _table(2, 1.0)}
    assert _kept(search(scores, costs, 2.0)) == {"layers.0.heads": [], "layers.1.heads": [0, 1]}
    assert _kept(search(scores, costs, 5.0)) == {"layers.0.heads": [0], "layers.1.heads": [0, 1]}


@pytest.mark.parametrize("combinations", [11, 12])
def test_roles_are_ranked_together_only_beyond_the_combinations(combinations, monkeypatch):
    """2 and 3 steps, tried with none: 3 * 4 combinations; the role of most units fills the rest."""
    asked = []
    monkeypatch.setattr(masks, "together", lambda *given: asked.append(given) or together(*given))
    scores = {"layers.0.heads": torch.ones(2), "layers.0.experts": torch.ones(3), "layers.0.neurons": torch.ones(4)}
    found = search(scores, {key: _table(len(score)) for key, score in scores.items()}, 7.0, combinations=combinations)
    assert [len(kept) for kept in _kept(found).values()] == [2, 3, 2]
    assert [[len(ranking) for ranking in each] for each in asked] == [[2, 3]] * (combinations < 12)


def test_heads_never_fill_the_rest_but_the_most_units_of_others_do(monkeypatch):
    filled = []

    def best_counts(tried, rest, room):
        filled.append(next(iter(rest.masks(0))))
        return [0] * (len(tried) + 1)

    monkeypatch.setattr(masks, "_best_counts", best_counts)
    for sizes, expected in (
        ({"heads": 9, "neurons": 2, "channels": 3}, "channels"),
        ({"heads": 9, "neurons": 3, "channels": 3}, "channels"),  # of equally many, the first by name
        ({"neurons": 3, "heads": 9}, "neurons"),
        ({"heads": 2}, "heads"),
    ):
        scores = {f"layers.0.{role}": torch.ones(units) for role, units in sizes.items()}
        search(scores, {key: _table(len(score)) for key, score in scores.items()}, 5.0)
        assert filled.pop() == f"layers.0.{expected}"


def test_the_least_cost_is_that_of_what_is_forced_or_of_a_single_step():
    costs = {"layers.0.heads": _table(3, 7.0), "layers.0.neurons": _table(4, 2.0), "layers.1.neurons": _table(0)}
    assert minimum_cost(costs) == 2.0
    assert minimum_cost({"layers.0.heads": _table(1, 3.0)}) == 3.0
    assert minimum_cost(costs, {"heads": 1}) == 7.0
    assert minimum_cost(costs, {"heads": 9, "neurons": 1}) == 23.0
    assert minimum_cost(costs, {"neurons": Limit(step=3)}) == 6.0
    assert minimum_cost(costs, {key: Limit(most=0) for key in costs}) == minimum_cost({}) == 0.0
    check_budget(costs, 7.0, {"heads": 1})


def test_a_refused_budget_is_told_in_shares_of_the_whole():
    costs = {f"layers.{layer}.heads": _table(2, 5.0) for layer in range(9)} | {"layers.9.heads": _table(0)}
    for given, message in (
        ({}, r"of 0\.1111 of the dense cost .* costs 0\.5 of it"),
        ({"dense": 200.0, "spent": 20.0}, r"of 0\.15 of the dense cost .* costs 0\.325 of it"),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            check_budget(costs, 10.0, {"heads": 1}, **given)
        assert "stay whole" not in str(caught.value)
    for count, end in ((8, r"layers\.6\.heads, layers\.7\.heads\.$"), (9, r"layers\.7\.heads and 1 more\.$")):
        with pytest.raises(ValueError, match=r"whole: layers\.0\.heads, .*" + end):
            check_budget(dict(list(costs.items())[:count]), 10.0, {"heads": 2})
    with pytest.raises(ValueError, match=r"whole: layers\.8\.heads\.$"):
        check_budget(dict(list(costs.items())[8:]), 9.0, {"heads": 2})


def test_what_a_group_keeps_is_held_against_its_floor_and_its_limit():
    found = {"layers.0.heads": torch.tensor([True, False, True])}
    for limits in ({"heads": 2}, {"layers.0.heads": Limit(2, 2, 2, (0, 2))}):
        check_kept(found, limits)
    with pytest.raises(ValueError, match="keep 2 units, below its floor of 3"):
        check_kept(found, {"heads": 3})
    for limit in (Limit(most=1), Limit(step=3), Limit(stay=(0, 1))):
        with pytest.raises(ValueError, match="keep 2 units, (which .* does not allow|below its floor)"):
            check_kept(found, {"layers.0.heads": limit})


@BOTH
def test_costs_rise_with_every_unit_and_scores_may_be_nothing(find):
    key = "layers.0.heads"
    assert _kept(find({key: torch.zeros(2)}, {key: _table(2)}, 1.0)) == {key: [0]}
    for costs in ([0.0, 1.0, 1.0], [0.0, 1.0, torch.inf], [0.0, 2.0, 1.0], [0.0, torch.nan, 2.0]):
        with pytest.raises(ValueError, match="the costs of layers.0.heads must be finite, and rise with every unit"):
            find({key: torch.ones(2)}, {key: torch.tensor(costs)}, 5.0)
    for below in (-1e-9, -2.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="the scores of layers.0.heads must be finite numbers of at least 0"):
            find({key: torch.tensor([1.0, below])}, {key: _table(2)}, 5.0)
    for scores, costs in (({}, {key: _table(2)}), ({key: torch.ones(2)}, {}), ({key: torch.ones(2)}, {key: _table(3)})):
        with pytest.raises(ValueError, match="layers.0.heads needs a score for each unit, and a cost for every number"):
            find(scores, costs, 5.0)
    with pytest.raises(ValueError, match="the sum of all scores is not finite"):
        find({key: torch.tensor([1.7e308, 1e308], dtype=torch.float64)}, {key: _table(2)}, 5.0)


def test_sums_between_places():
    values = torch.arange(1.0, 9.0)
    assert _between(values, [0, 1, 3, 3, 8]).tolist() == [1, 5, 0, 30]
    assert _between(values, [2, 4]).tolist() == [7]
    assert _between(values, [5]).tolist() == []


def test_of_parts_the_best_of_each_come_first():
    worth = torch.tensor([1.0, 3.0, 2.0, 5.0, 5.0, 9.0])
    assert _in_order(worth, 1).tolist() == [5, 3, 4, 1, 2, 0]
    assert _in_order(worth, 2).tolist() == [1, 5, 2, 3, 0, 4]
    assert _in_order(worth, 3).tolist() == [1, 3, 5, 0, 2, 4]


def test_a_ranking_takes_what_is_forced_in_order_and_then_steps_by_their_worth():
    scores = {"a.neurons": torch.tensor([1.0, 5.0, 4.0, 3.0, 2.0]), "b.neurons": torch.tensor([9.0, 0.0, 6.0])}
    costs = {"a.neurons": _table(5), "b.neurons": _table(3, 2.0), "c.heads": _table(9)}
    limits = {"a.neurons": Limit(least=2, step=2, stay=(0,)), "b.neurons": Limit(step=2, most=2)}
    found = rank("neurons", scores, costs, limits)
    a, b = "a.neurons", "b.neurons"
    assert steps_of(found) == [[(a, 0)], [(a, 1)], [(b, 0), (b, 2)], [(a, 2), (a, 3)], [(a, 4)]]
    assert found.forced == 2
    assert found.spent.tolist() == [0, 1, 2, 6, 8, 9] and found.gained.tolist() == [0, 1, 6, 21, 28, 30]
    even = level("neurons", scores, costs, {a: Limit(least=2, step=2), b: Limit(least=2, step=2)})
    assert steps_of(even) == [[(a, 1), (b, 0)], [(a, 2), (b, 2)], [(a, 3), (a, 4), (b, 1)], [(a, 0)]]
    assert even.forced == 2
    assert even.spent.tolist() == [0, 3, 6, 10, 11] and even.gained.tolist() == [0, 14, 24, 29, 30]


def test_the_last_and_smaller_step_of_a_group_never_comes_before_a_full_one():
    key = "layers.0.neurons"
    scores, costs = {key: torch.tensor([3.0, 3.0, 3.0])}, {key: torch.tensor([0.0, 1.0, 2.0, 3.0 - 1e-7])}
    assert steps_of(rank("neurons", scores, costs, {key: Limit(step=2)})) == [[(key, 0), (key, 1)], [(key, 2)]]


def test_two_kinds_are_ranked_together_by_worth_the_forced_ones_first():
    one = rank("a", {"a": torch.tensor([0.0, 8.0])}, {"a": torch.tensor([0.0, 1.0, 3.0])}, {"a": Limit(1, stay=(0,))})
    scores, costs = {"b": torch.tensor([9.0, 5.0, 4.0])}, {"b": torch.tensor([0.0, 2.0, 3.0, 4.0])}
    other = rank("b", scores, costs, {})
    found = together(one, other)
    assert steps_of(found) == [[("a", 0)], [("b", 0), ("b", 1)], [("a", 1)], [("b", 2)]]
    assert found.forced == 1
    assert found.spent.tolist() == [0, 1, 4, 6, 7] and found.gained.tolist() == [0, 0, 14, 22, 26]


@pytest.mark.parametrize("seed", range(20))
def test_corners_are_the_numbers_that_no_chord_passes_above(seed):
    draw = random.Random(seed)
    units = draw.randint(1, 9)
    spent = torch.tensor([0, *itertools.accumulate(draw.randint(1, 4) for _ in range(units))]).double()
    score = torch.tensor([draw.randint(0, 4) for _ in range(units)]).double()
    numbers = sorted(draw.sample(range(units + 1), draw.randint(1, units + 1)))
    points = [(int(spent[number]), int(score[:number].sum()), number) for number in numbers]
    under = {
        number
        for (x0, y0, _), (x, y, number), (x1, y1, _) in itertools.combinations(points, 3)
        if (y - y0) * (x1 - x0) < (y1 - y0) * (x - x0)
    }
    assert _corners(spent, score, numbers) == [number for number in numbers if number not in under]


def test_corners_that_differ_by_rounding_are_left():
    numbers = [0, 1, 2, 3]
    for more, kept in ((1e-8, numbers), (1e-4, [0, 3])):
        score = torch.tensor([1.0, 1.0 + more, 1.0 + 2 * more]).double()
        assert _corners(_table(3), score, numbers) == kept
        score[0] += 2.0  # a step that is worth much more is no reason to look at the rest closely
        assert _corners(_table(3), score, numbers) == (numbers if kept == numbers else [0, 1, 3])


def _topped_up(kept, orders, costs, budget, numbers):
    """`topped_up` of scores in the order in which they are kept, in whole numbers, without looking ahead."""
    kept = dict(kept)
    while True:
        spent = sum(costs[key][count] for key, count in kept.items())
        reached = {}
        for key, count in kept.items():
            fit = [n for n in numbers[key] if n > count and spent - costs[key][count] + costs[key][n] <= budget]
            if fit:
                reached[key] = fit[-1]
        if not reached:
            return kept
        best = max(reached, key=lambda key: (sum(orders[key][kept[key] : reached[key]]), key))
        kept[best] = reached[best]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_left_of_a_budget_goes_to_the_group_that_gains_most(seed):
    draw = random.Random(seed)
    scores, costs, orders, kept, limits, masks = {}, {}, {}, {}, {}, {}
    for key in ("a.heads", "b.heads", "a.neurons", "b.neurons"):
        units = draw.randint(2, 6)
        score = [draw.randint(0, 99) for _ in range(units)]
        limits[key] = Limit(step=draw.choice([1, 1, 2]), most=draw.choice([None, units]), stay=draw.choice([(), (1,)]))
        first = sorted(range(units), key=lambda unit: (unit not in limits[key].stay, -score[unit], unit))
        orders[key] = [score[unit] for unit in first]
        costs[key] = [0, *itertools.accumulate(draw.randint(1, 9) for _ in range(units))]
        scores[key] = torch.tensor(score)
        kept[key] = draw.choice(limits[key].numbers(units)[:2])
        masks[key] = torch.zeros(units, dtype=torch.bool)
        masks[key][first[: kept[key]]] = True
    numbers = {key: limit.numbers(len(scores[key])) for key, limit in limits.items()}
    tables = {key: torch.tensor(table).float() for key, table in costs.items()}
    least = sum(costs[key][count] for key, count in kept.items())
    for budget in range(least, sum(table[-1] for table in costs.values()) + 1):
        found = topped_up(masks, scores, tables, budget, limits)
        expected = _topped_up(kept, orders, costs, budget, numbers)
        assert {key: int(mask.sum()) for key, mask in found.items()} == expected
        for key, mask in found.items():
            best = sum(sorted(orders[key], reverse=True)[: expected[key]])
            assert mask[list(limits[key].stay)].all() or not expected[key]
            assert int(scores[key][mask].sum()) == sum(orders[key][: expected[key]]) <= best


def test_a_ranking_of_costs_that_are_no_line_steps_from_corner_to_corner():
    key = "a.neurons"
    scores, costs = {key: torch.tensor([4.0, 3.0, 2.0, 1.0])}, {key: torch.tensor([0.0, 9.0, 10.0, 11.0, 20.0])}
    found = rank("neurons", scores, costs, {})
    assert steps_of(found) == [[(key, 0), (key, 1), (key, 2)], [(key, 3)]]
    assert found.spent.tolist() == [0, 11, 20] and found.gained.tolist() == [0, 9, 10]
    found = rank("neurons", scores, costs, {"neurons": 1})
    assert steps_of(found) == [[(key, 0)], [(key, 1)], [(key, 2)], [(key, 3)]]
    assert found.forced == 1


LAYERS = [f"layers.{layer}" for layer in range(4)]
SUBLAYERS = [
    Group(layer, role, units, 1, Cut((Consumer("a"),), ()))
    for layer in LAYERS
    for role, units in (("heads", 2), ("neurons", 4), ("channels", 3))
]


def _worths(**worths):
    """Scores and costs of the sublayers: by default a unit of heads loses 8 at a cost of 2, of neurons 4 at 1."""
    scores = {group.key: torch.full((group.units,), 8.0 if group.role == "heads" else 4.0) for group in SUBLAYERS}
    costs = {group.key: _table(group.units, 2.0 if group.role == "heads" else 1.0) for group in SUBLAYERS}
    for name, worth in worths.items():
        scores[name.replace("_", ".")].fill_(worth)
    return scores, costs


def test_the_cheapest_sublayers_by_loss_for_each_unit_of_cost_go():
    scores, costs = _worths(**{"layers_1_neurons": 1.0, "layers_3_heads": 3.0, "layers_0_channels": 0.0})
    for count, expected in (
        (1, ["1.neurons"]),
        (2, ["1.neurons", "3.heads"]),
        (3, ["1.neurons", "3.heads", "0.heads"]),
    ):
        found = depths(SUBLAYERS, scores, costs, 1.0, OptinConfig(depth=count))
        assert found == [tuple(f"layers.{name}" for name in expected)], "channels are no sublayer"
    dear = costs | {"layers.3.heads": costs["layers.3.heads"] * 10}
    assert depths(SUBLAYERS, scores, dear, 1.0, OptinConfig(depth=1)) == [("layers.3.heads",)]
    (all_of_them,) = depths(SUBLAYERS, scores, costs, 1e9, OptinConfig(depth=8, min_heads=1, min_neurons=2))
    assert len({*all_of_them}) == 8
    with pytest.raises(ValueError, match="depth=9: of this model 8 sublayers may lose all"):
        depths(SUBLAYERS, scores, costs, 1.0, OptinConfig(depth=9))


def test_several_numbers_of_sublayers_and_layers_are_tried_as_far_as_the_budget_can_be_spent():
    groups = [group for group in SUBLAYERS if group.role != "channels"]
    keys = {group.key for group in groups}
    worths = {"layers_1_neurons": 1.0, "layers_3_heads": 3.0, "layers_0_neurons": 2.0, "layers_2_heads": 6.0}
    scores, costs = ({key: each[key] for key in keys} for each in _worths(**worths))
    names = ["layers.1.neurons", "layers.3.heads", "layers.0.neurons", "layers.2.heads"]
    whole = ["layers.1.heads", "layers.1.neurons"], ["layers.3.heads", "layers.3.neurons"]
    every = [(), *(tuple(names[:count]) for count in (1, 2, 4)), tuple(whole[0]), (*whole[0], *whole[1])]
    for budget, left in ((16.0, 6), (16.5, 4), (24.0, 4), (24.1, 2), (28.0, 2), (28.1, 1)):
        found = depths(groups, scores, costs, budget, OptinConfig(depth="auto"))
        assert found == [each for each in every if sum(4.0 for _ in each) <= 32 - budget], budget
        assert len(found) == left
    dear = {key: table * (4 if "layers.3" in key else 1) for key, table in costs.items()}
    found = depths(groups, scores, dear, 1.0, OptinConfig(depth="auto"))
    assert set(found[4]) == {*whole[1]}, "its loss is more than that of layer 1, but not for what it costs"
    scores["layers.1.heads"].fill_(0.5)  # then the two cheapest sublayers are the cheapest layer
    assert sum({*each} == {*whole[0]} for each in depths(groups, scores, costs, 1.0, OptinConfig(depth="auto"))) == 1
    assert depths(groups, scores, costs, 1.0, OptinConfig(depth="auto", exclude=["*"])) == [()]
    limits = {"a.heads": Limit(1), "b.heads": Limit(2)}
    assert without(limits, ("b.heads",)) == {"a.heads": Limit(1), "b.heads": Limit(most=0)}


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_the_numbers_that_may_stay_are_those_of_some_mask(parts):
    draw = random.Random(parts)
    for _ in range(150):
        size = draw.randint(0, 6 // parts)
        units = parts * size
        most, step = draw.choice([None, None, units, 0, 1, 3, 4, 9]), draw.choice([1, 1, 2, 3, 4])
        stay = tuple(sorted(draw.sample(range(units), draw.randint(0, units))))
        limit = Limit(draw.choice([0, 0, 1, 2, 5, 9]), most, step, stay, parts)
        allowed = set()
        for mask in itertools.product([0, 1], repeat=units):
            kept = sum(mask)
            even = len({sum(mask[size * part : size * (part + 1)]) for part in range(parts)}) == 1
            fits = min(limit.least, units) <= kept <= (units if most is None else most)
            if even and fits and all(mask[unit] for unit in stay) and (kept % step == 0 or kept == units):
                allowed.add(kept)
        assert limit.numbers(units) == sorted(allowed), (limit, units)


def test_a_limit_does_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Limit().least = 1


def test_levelled_limits_are_the_strictest_of_a_role():
    sizes = {"a.heads": 4, "b.heads": 8, "c.heads": 6, "c.neurons": 9}
    limits = {
        "a.heads": Limit(9, 4, 1),
        "b.heads": Limit(3, 7, 2, (1,), 2),
        "c.heads": Limit(1, 5, 1, (0, 1)),
        "neurons": 2,
    }
    assert levelled(limits, sizes) == {
        "a.heads": Limit(4, 5, 2),
        "b.heads": Limit(4, 5, 2, (1,), 2),
        "c.heads": Limit(4, 5, 2, (0, 1)),
        "c.neurons": Limit(2),
    }
    assert numbers_of("d.heads", {"heads": 1, "d.heads": Limit(most=1)}, 2) == [0, 1]
    with pytest.raises(ValueError, match=r"at least 3 and at most 2 are to stay\. Change"):
        numbers_of("d.heads", {"d.heads": Limit(3, 2)}, 4)
    with pytest.raises(ValueError, match=r"at least 1 and at most 1 are to stay, in multiples of 2\."):
        numbers_of("d.heads", {"d.heads": Limit(1, 1, 2)}, 4)
    with pytest.raises(ValueError, match=r"at least 1 and at most 3 are to stay, in multiples of 6\."):
        numbers_of("d.heads", {"d.heads": Limit(1, 3, 2, parts=3)}, 9)


def _find(tables, room, least=0.0):
    if room < least:
        raise ValueError("the least does not fit")
    return {"a.heads": torch.arange(10) < int(room + 1e-6)}


def _half_price(limit):
    """Here units cost half of their sum."""
    return Price(
        "flops", {"a.heads": _table(10)}, 0.0, 5.0, limit, lambda found: 0.5 * int(found["a.heads"].sum()), False
    )


@pytest.mark.parametrize(("budget", "kept"), [(9.0, 10), (5.0, 10), (4.9, 9), (3.0, 6), (2.99, 5), (1.0, 2), (0.0, 0)])
def test_where_units_cost_less_than_their_sum_the_budget_is_spent_all_the_same(budget, kept):
    """The most units whose true cost fits, by trying sums."""
    asked = []

    def find(tables, room):
        asked.append(room)
        return _find(tables, room)

    assert int(within([_half_price(budget)], find, len)["a.heads"].sum()) == kept
    assert len(asked) == (1 if kept == 10 else 17)
    assert within([_half_price(budget * (1 - 1e-12))], _find, len)["a.heads"].sum() == kept


def test_a_sum_that_does_not_pay_for_the_least_is_raised():
    find = functools.partial(_find, least=3.9)
    assert int(within([_half_price(2.0)], find, len)["a.heads"].sum()) == 4
    with pytest.raises(ValueError, match="the least does not fit"):
        within([_half_price(1.0)], find, len)
