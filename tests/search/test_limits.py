"""Limits of single groups against brute force over all masks of small problems; without them, results are as before."""

import hashlib
import itertools
import random

import pytest
import torch
from problems import gained, problem, spent

from optimum_optin.search.limits import Limit, levelled
from optimum_optin.search.masks import COMBINATIONS, check_budget, check_kept, search, search_uniform

WHOLE = {"layers.0.heads": Limit(least=3), "layers.0.neurons": Limit(least=5)}
LIMITS = {
    "stay": {"layers.0.heads": Limit(stay=(2,)), "layers.1.neurons": Limit(stay=(1, 3))},
    "ceilings": {"layers.0.heads": Limit(most=1), "layers.1.heads": Limit(1, 1), "layers.0.neurons": Limit(most=0)},
    "whole": WHOLE,
    "floors of both kinds": {"heads": 1, "layers.0.neurons": Limit(least=2)},
    "steps": {f"layers.{layer}.neurons": Limit(step=2) for layer in range(2)},
    "together": {
        "heads": 1,
        "layers.0.heads": Limit(1, 2, stay=(1,)),
        "layers.0.neurons": Limit(2, None, 2, stay=(4,)),
        "layers.1.neurons": Limit(0, 3, 2),
    },
    "whole and steps": {**WHOLE, "layers.1.neurons": Limit(step=3, stay=(0,))},
}


def _allowed(key, mask, limits):
    """Whether a group may keep these units, as the guide says it."""
    limit = limits.get(key, limits.get(key.split(".")[-1], 0))
    if isinstance(limit, int):
        limit = Limit(least=limit)
    kept, units = sum(mask), len(mask)
    return (
        kept >= min(limit.least, units)
        and (limit.most is None or kept <= limit.most)
        and (kept % limit.step == 0 or kept == units)
        and all(mask[unit] for unit in limit.stay)
    )


def _best(scores, costs, budget, limits, uniform=False):
    """The most that masks within the limits and the budget can gain; `None` if there are none."""
    choices = [
        [
            (
                sum(mask),
                float(costs[key][sum(mask)]),
                sum(kept * float(gain) for kept, gain in zip(mask, score, strict=True)),
            )
            for mask in itertools.product([0, 1], repeat=len(score))
            if _allowed(key, mask, limits)
        ]
        for key, score in scores.items()
    ]
    return max(
        (
            sum(gain for _, _, gain in choice)
            for choice in itertools.product(*choices)
            if sum(cost for _, cost, _ in choice) <= budget
            and not (uniform and _uneven(scores, [kept for kept, _, _ in choice]))
        ),
        default=None,
    )


def _uneven(scores, numbers):
    """Whether groups of a role keep different numbers, and not because one has no more."""
    for role in ("heads", "neurons"):
        of_role = [
            (kept, len(score)) for (key, score), kept in zip(scores.items(), numbers, strict=True) if key.endswith(role)
        ]
        most = max(kept for kept, _ in of_role)
        if any(kept != min(most, units) for kept, units in of_role):
            return True
    return False


@pytest.mark.parametrize("limits", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("find", [search, search_uniform], ids=["free", "uniform"])
def test_the_best_masks_within_the_limits_are_found(find, limits):
    tried = 0
    for seed, share in itertools.product(range(2), (0.3, 0.55, 0.8, 1.0)):
        scores, costs = problem(seed)
        scores["layers.0.neurons"][0] = 0.0
        budget = share * spent({key: torch.ones_like(score) for key, score in scores.items()}, costs)
        best = _best(scores, costs, budget, limits, uniform=find is search_uniform)
        if best is None:
            with pytest.raises(ValueError, match="below the minimum structure|can keep no number"):
                find(scores, costs, budget, limits)
            continue
        found = find(scores, costs, budget, limits)
        assert all(_allowed(key, mask.tolist(), limits) for key, mask in found.items())
        check_kept(found, limits)
        assert spent(found, costs) <= budget
        # Ranked by score per cost, the last and smaller step of a group may be passed over for one that does not fit.
        steps = find is search and any(isinstance(limit, Limit) and limit.step > 1 for limit in limits.values())
        missed = max(float(scores[key].topk(2).values.sum()) for key in scores) if steps else 1e-6
        assert best - missed <= gained(found, scores) <= best + 1e-6, (seed, share)
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("find", [search, search_uniform], ids=["free", "uniform"])
def test_steps_of_one_size_are_spent_in_the_best_way(find, seed):
    scores, costs = problem(seed, neurons=(6, 4))
    limits = {f"layers.{layer}.neurons": Limit(step=2, stay=(1, 2) * (1 - layer)) for layer in range(2)}
    for share in (0.4, 0.6, 0.8):
        budget = share * sum(float(table[-1]) for table in costs.values())
        found = find(scores, costs, budget, limits)
        best = _best(scores, costs, budget, limits, uniform=find is search_uniform)
        assert gained(found, scores) == pytest.approx(best)
        assert all(int(mask.sum()) % 2 == 0 for key, mask in found.items() if key.endswith("neurons"))


def test_many_roles_ranked_together_keep_to_the_limits():
    scores = {f"layers.0.{role}": torch.linspace(0, 1, 8) for role in ("heads", "neurons", "channels", "experts")}
    costs = dict.fromkeys(scores, torch.arange(9.0))
    limits = {key: Limit(2, 5, 2, stay=(0,)) for key in scores}
    found = search(scores, costs, 20.0, limits, combinations=1)
    assert [mask.nonzero().flatten().tolist() for mask in found.values()] == [[0, 5, 6, 7]] * 4


def test_what_numbers_may_stay():
    assert Limit().numbers(3) == [0, 1, 2, 3]
    assert Limit(step=4).numbers(10) == [0, 4, 8, 10]
    assert Limit(least=3, most=9, step=4).numbers(10) == [4, 8]
    assert Limit(least=9, step=4).numbers(10) == [10]
    assert Limit(least=99).numbers(10) == Limit(least=10, step=4).numbers(10) == [10]
    assert Limit(stay=(1, 2, 3), step=2).numbers(4) == [4]
    assert Limit(most=99, step=8).numbers(3) == [0, 3]
    assert Limit(least=5, most=7, step=4).numbers(10) == []
    assert Limit(least=2, step=4).numbers(0) == [0]


def test_levelled_limits_are_those_of_all_groups_of_a_role():
    sizes = {"layers.0.heads": 4, "layers.1.heads": 8, "layers.0.neurons": 9}
    limits = {"layers.0.heads": Limit(most=4), "layers.1.heads": Limit(2, 6, stay=(7,)), "neurons": 3}
    found = levelled(limits, sizes)
    assert found == {
        "layers.0.heads": Limit(2, 6),
        "layers.1.heads": Limit(2, 6, stay=(7,)),
        "layers.0.neurons": Limit(3),
    }
    assert levelled(found, sizes) == found


def test_limits_that_contradict_each_other_are_refused():
    scores, costs = problem(0)
    for limit, message in (
        (Limit(3, 2), r"layers\.0\.neurons can keep no number of its 5 units: at least 3 and at most 2 are to stay\."),
        (Limit(0, 1, stay=(0, 1)), "at least 2 and at most 1 are to stay"),
        (Limit(2, 3, 4), "at least 2 and at most 3 are to stay, in multiples of 4. Change floors"),
    ):
        for find in (search, search_uniform):
            with pytest.raises(ValueError, match=message):
                find(scores, costs, 50.0, {"layers.0.neurons": limit})


def test_a_budget_that_cannot_be_met_names_what_must_stay_whole():
    _, costs = problem(0)  # dense 53: layers.0 has 3 heads of 7 and 5 neurons of 2
    with pytest.raises(ValueError, match=r"costs 0\.5849 .*exclude less.* whole: layers\.0\.heads, layers\.0\.neurons"):
        check_budget(costs, 30.0, WHOLE)
    check_budget(costs, 31.0, WHOLE)
    with pytest.raises(ValueError, match=r"costs 0\.07547 of it"):  # the least is a step of two neurons
        check_budget(costs, 3.0, {**{key: Limit(step=2) for key in costs}, "layers.0.heads": Limit(step=3)})
    costs = {f"layers.{layer}.heads": torch.arange(3.0) for layer in range(10)}
    with pytest.raises(ValueError, match=r"layers\.7\.heads and 2 more\."):
        check_budget(costs, 3.0, {"heads": 2})


def test_a_result_outside_of_the_limits_is_an_error():
    found = {"layers.0.heads": torch.tensor([True, True, False, True])}
    check_kept(found, {"layers.0.heads": Limit(2, 3, 3, (1, 3))})
    for limit in (Limit(most=2), Limit(step=2), Limit(stay=(2,))):
        with pytest.raises(ValueError, match=r"layers\.0\.heads would keep 3 units, which Limit\(.* does not allow"):
            check_kept(found, {"layers.0.heads": limit})


# SHA-256 of what the search found before it knew limits of single groups.
BEFORE = {
    COMBINATIONS: "2f9bf977c7e55025e8649b7f0e9054f8d453a9c36cc3d45a0adc32c6165dc28a",
    4: "297f6e7b6b471246e5ab73ff4f194962fc1b68ccc6d933a518a0d1636e5a21be",
}


@pytest.mark.parametrize("combinations", BEFORE, ids=["all combinations", "ranked together"])
def test_floors_by_role_alone_give_the_same_masks_as_before(combinations):
    draw, digest = random.Random(0), hashlib.sha256()
    for _ in range(60):
        scores, costs = {}, {}
        for layer in range(3):
            for role in draw.choice([["heads", "neurons"], ["heads", "neurons", "channels"], ["experts", "channels"]]):
                units, price, digits = draw.randint(0, 9), draw.choice([2.0, 2.0, 0.25, 5.0]), draw.choice([1, 9])
                scores[f"layers.{layer}.{role}"] = torch.tensor([round(draw.random(), digits) for _ in range(units)])
                costs[f"layers.{layer}.{role}"] = torch.arange(units + 1).double() * price
        floors = {role: draw.randint(0, 3) for role in ("heads", "neurons", "experts")}
        dense = sum(float(table[-1]) for table in costs.values())
        for find, share in itertools.product((search, search_uniform), (0.3, 0.5, 0.7, 0.9)):
            try:
                found = find(scores, costs, share * dense, floors, combinations)
            except ValueError as error:
                digest.update(str(error).split(":")[0].encode())
            else:
                digest.update(str([(key, mask.tolist()) for key, mask in found.items()]).encode())
    assert digest.hexdigest() == BEFORE[combinations]
