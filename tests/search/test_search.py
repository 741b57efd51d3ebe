"""Mask search against brute force over all masks of small problems."""

import itertools

import pytest
import torch
from problems import gained, problem, spent

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


@pytest.mark.parametrize("find", [search, search_uniform])
def test_a_role_that_the_search_does_not_know_is_refused(find):
    """It was emptied in silence, whatever the budget."""
    scores, costs = problem(0)
    scores["layers.0.channels"], costs["layers.0.channels"] = torch.rand(3), torch.arange(4.0)
    for call in (lambda: find(scores, costs, 1e9), lambda: check_budget(costs, 1e9)):
        with pytest.raises(ValueError, match=r"layers\.0\.channels has the role 'channels'; .* heads and neurons"):
            call()


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
