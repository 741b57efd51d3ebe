"""Mask search against brute force over all masks of small problems."""

import itertools

import pytest
import torch
from problems import gained, problem, problem_of_roles, spent

from optimum_optin.search import masks
from optimum_optin.search.masks import check_budget, check_kept, search, search_uniform


def _best_by_brute_force(scores, costs, budget, floors=None):
    best = -1.0
    choices = [list(itertools.product([False, True], repeat=len(score))) for score in scores.values()]
    for choice in itertools.product(*choices):
        masks = {key: torch.tensor(mask) for key, mask in zip(scores, choice, strict=True)}
        floored = all(int(mask.sum()) >= (floors or {}).get(key.split(".")[-1], 0) for key, mask in masks.items())
        if floored and spent(masks, costs) <= budget:
            best = max(best, gained(masks, scores))
    return best


@pytest.mark.parametrize("share", [0.15, 0.4, 0.6, 0.85, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_optimal(seed, share):
    scores, costs = problem(seed)
    budget = share * sum(float(table[-1]) for table in costs.values())
    masks = search(scores, costs, budget)
    assert spent(masks, costs) <= budget * (1 + 1e-9)
    assert gained(masks, scores) == pytest.approx(_best_by_brute_force(scores, costs, budget))


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_search_with_floors_is_optimal(share):
    scores, costs = problem(5)
    scores["layers.0.neurons"] *= 1e-3  # without a floor this group would lose everything
    floors = {"heads": 1, "neurons": 2}
    budget = share * sum(float(table[-1]) for table in costs.values())
    masks = search(scores, costs, budget, floors)
    assert int(masks["layers.0.neurons"].sum()) >= 2
    assert gained(masks, scores) == pytest.approx(_best_by_brute_force(scores, costs, budget, floors))


def test_the_whole_budget_keeps_everything():
    scores, costs = problem(0)
    masks = search(scores, costs, sum(float(table[-1]) for table in costs.values()))
    assert all(mask.all() for mask in masks.values())


def test_ties_go_to_the_earlier_unit():
    scores = {"layers.0.neurons": torch.ones(4)}
    masks = search(scores, {"layers.0.neurons": torch.arange(5.0)}, 2.0)
    assert masks["layers.0.neurons"].tolist() == [True, True, False, False]


def test_models_of_one_kind_of_unit():
    scores = {"layers.0.heads": torch.tensor([1.0, 3.0, 2.0])}
    masks = search(scores, {"layers.0.heads": torch.arange(4.0)}, 2.0)
    assert masks["layers.0.heads"].tolist() == [False, True, True]


def test_budget_below_the_minimum_is_refused_with_the_minimum():
    _, costs = problem(0)  # dense 2 * (7 * 2.5 + 2 * 4.5) = 53
    with pytest.raises(ValueError, match=r"0\.01 of the dense cost.*costs 0\.03774"):
        check_budget(costs, 0.01 * 53)
    with pytest.raises(ValueError, match=r"costs 0\.3396.*min_heads"):
        check_budget(costs, 0.3 * 53, {"heads": 1, "neurons": 1})
    check_budget(costs, 0.35 * 53, {"heads": 1, "neurons": 1})


ROLES = ["heads", "neurons", "channels", "experts"]


def _totals_of_role(scores, floor, uniform):
    """Number of units -> the most that so many units of one role can gain, by a loop over all their masks."""
    best = {}
    if uniform:
        most = max(map(len, scores.values()))
        for count in range(min(floor, most), most + 1):
            kept = [score.sort(descending=True).values[:count] for score in scores.values()]
            best[sum(map(len, kept))] = sum(float(each.double().sum()) for each in kept)
        return best
    for choice in itertools.product(*(itertools.product([0, 1], repeat=len(score)) for score in scores.values())):
        if all(sum(mask) >= min(floor, len(mask)) for mask in choice):
            total = float(torch.cat(list(scores.values())) @ torch.tensor(sum(choice, ())).float())
            count = sum(map(sum, choice))
            best[count] = max(best.get(count, 0.0), total)
    return best


def _best_of_roles(scores, costs, budget, floors, uniform):
    """The most that the budget can gain, by a loop over all numbers of units of every role."""
    totals, prices = [], []
    for role in dict.fromkeys(key.split(".")[-1] for key in scores):
        of_role = {key: score for key, score in scores.items() if key.endswith(role)}
        totals.append(_totals_of_role(of_role, floors.get(role, 0), uniform))
        prices.append(max(float(costs[key].diff().max()) for key in of_role if len(costs[key]) > 1))
    affordable = [
        sum(total[count] for total, count in zip(totals, counts, strict=True))
        for counts in itertools.product(*totals)
        if sum(price * count for price, count in zip(prices, counts, strict=True)) <= budget * (1 + 1e-9)
    ]
    return max(affordable)


@pytest.mark.parametrize("find", [search, search_uniform])
@pytest.mark.parametrize("at_once", [5, masks._AT_ONCE])
@pytest.mark.parametrize("floors", [{}, {"heads": 1, "channels": 2, "experts": 9}], ids=["no floors", "floors"])
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_any_roles_are_searched(find, at_once, floors, count, monkeypatch):
    monkeypatch.setattr(masks, "_AT_ONCE", at_once)
    for seed, share in itertools.product(range(3), [0.25, 0.4, 0.7, 1.0]):
        scores, costs = problem_of_roles(seed, ROLES[:count])
        dense = sum(float(table[-1]) for table in costs.values())
        forced = {key: min(floors.get(key.split(".")[-1], 0), len(score)) for key, score in scores.items()}
        budget = max(share * dense, sum(float(costs[key][number]) for key, number in forced.items()))
        found = find(scores, costs, budget, floors)
        assert spent(found, costs) <= budget * (1 + 1e-9)
        assert all(int(mask.sum()) >= forced[key] for key, mask in found.items())
        best = _best_of_roles(scores, costs, budget, floors, find is search_uniform)
        assert gained(found, scores) == pytest.approx(best), (seed, share)


@pytest.mark.parametrize("roles", [["channels"], ["channels", "experts"], ["heads", "channels"], ROLES])
def test_all_of_any_roles_fits_the_whole_budget(roles):
    scores, costs = problem_of_roles(0, roles)
    for find in (search, search_uniform):
        assert all(
            mask.all() for mask in find(scores, costs, sum(float(table[-1]) for table in costs.values())).values()
        )


@pytest.mark.parametrize("seed", range(5))
def test_beyond_the_combinations_that_are_tried_the_best_is_missed_by_one_unit_at_most(seed):
    scores, costs = problem_of_roles(seed, ROLES)
    dense = sum(float(table[-1]) for table in costs.values())
    floors = {"heads": 1, "channels": 1}
    for share in (0.3, 0.5, 0.7, 0.9):
        found = search(scores, costs, share * dense, floors, combinations=1)
        assert spent(found, costs) <= share * dense
        assert all(found[key].any() for key in found if key.endswith(("heads", "channels")))
        best = _best_of_roles(scores, costs, share * dense, floors, uniform=False)
        assert best - max(float(score.max()) for score in scores.values()) <= gained(found, scores) <= best + 1e-6


@pytest.mark.parametrize("at_once", [5, masks._AT_ONCE])
def test_of_equal_totals_the_one_with_more_heads_is_taken_then_more_of_the_next_role_by_name(at_once, monkeypatch):
    monkeypatch.setattr(masks, "_AT_ONCE", at_once)
    roles = ["neurons", "channels", "heads", "experts"]
    costs = {f"layers.0.{role}": torch.arange(5.0) for role in roles}
    scores = {key: torch.ones(4) for key in costs}
    for find in (search, search_uniform):
        found = find(scores, costs, 6.0)
        assert {key.split(".")[-1]: int(mask.sum()) for key, mask in found.items() if mask.any()} == {
            "heads": 4,
            "experts": 2,
        }  # channels are as many as neurons, and fill the rest


@pytest.mark.parametrize("find", [search, search_uniform])
def test_a_model_without_units_keeps_none(find):
    assert find({}, {}, 1.0) == {}


@pytest.mark.parametrize("find", [search, search_uniform])
def test_a_role_without_units_and_a_budget_of_nothing(find):
    scores = {"layers.0.channels": torch.ones(3), "layers.0.experts": torch.zeros(0), "layers.0.heads": torch.zeros(0)}
    costs = {key: torch.arange(len(score) + 1.0) for key, score in scores.items()}
    assert [int(mask.sum()) for mask in find(scores, costs, 2.0, {"experts": 1, "heads": 1}).values()] == [2, 0, 0]
    with pytest.raises(ValueError, match=r"a budget of 0 of the dense cost is below .* costs 0\.3333"):
        find(scores, costs, 0.0)


@pytest.mark.parametrize("find", [search, search_uniform])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores, costs: scores["layers.1.heads"].__setitem__(0, torch.nan), "scores of layers.1.heads must be"),
        (lambda scores, costs: scores["layers.1.heads"].__setitem__(0, torch.inf), "scores of layers.1.heads must be"),
        (lambda scores, costs: scores["layers.1.neurons"].neg_(), "scores of layers.1.neurons must be finite .* 0"),
        (lambda scores, costs: scores.pop("layers.0.heads"), "layers.0.heads needs a score for each unit"),
        (lambda scores, costs: costs.pop("layers.0.heads"), "layers.0.heads needs a score for each unit"),
        (lambda scores, costs: scores.update({"layers.0.heads": torch.ones(9)}), "layers.0.heads needs a score for"),
        (lambda scores, costs: costs["layers.0.heads"].zero_(), "costs of layers.0.heads must be finite, and rise"),
        (
            lambda scores, costs: scores.update({key: each.double() * 1e308 for key, each in scores.items()}),
            "too large",
        ),
    ],
    ids=["nan", "inf", "negative", "no score", "no cost", "length", "free units", "overflow"],
)
def test_numbers_that_are_no_scores_are_refused(find, change, message):
    scores, costs = problem(0)
    change(scores, costs)
    with pytest.raises(ValueError, match=message):
        find(scores, costs, 40.0, {"heads": 1})


def test_a_result_below_the_floors_is_an_error():
    masks = {"layers.0.heads": torch.zeros(4, dtype=torch.bool), "layers.0.neurons": torch.zeros(0, dtype=torch.bool)}
    with pytest.raises(ValueError, match=r"layers\.0\.heads would keep 0 units, below its floor of 1"):
        check_kept(masks, {"heads": 1, "neurons": 3})
    check_kept(masks, {"neurons": 3})
