"""Several budgets, and costs that are not linear, against all combinations of numbers of units."""

import dataclasses
import itertools

import pytest
import torch
from problems import gained, problem, spent
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.pricing.prices import Price
from optimum_optin.pricing.tensors import count_bytes, count_parameters
from optimum_optin.search.masks import search, search_uniform
from optimum_optin.search.within import within


def _price(name, costs, limit, fixed=0.0):
    dense = fixed + sum(float(table[-1]) for table in costs.values())
    return Price(name, costs, fixed, dense, limit, lambda masks: fixed + spent(masks, costs), True)


def _best(scores, prices):
    """The most that masks within all budgets gain."""
    sums = {
        key: [0.0, *score.double().sort(descending=True).values.cumsum(0).tolist()] for key, score in scores.items()
    }
    return max(
        sum(total[count] for total, count in zip(sums.values(), counts, strict=True))
        for counts in itertools.product(*(range(len(total)) for total in sums.values()))
        if all(
            price.fixed + sum(float(price.tables[key][count]) for key, count in zip(sums, counts, strict=True))
            <= price.limit * (1 + 1e-9)
            for price in prices
        )
    )


def _found(scores, prices):
    return within(prices, lambda tables, room: search(scores, tables, room), lambda masks: gained(masks, scores))


@pytest.mark.parametrize("seed", range(8))
def test_all_of_several_budgets_hold_and_little_is_missed(seed):
    scores, first = problem(seed, heads=(3, 2), neurons=(6, 5))
    _, second = problem(seed, heads=(3, 2), neurons=(6, 5), head_cost=1.0, neuron_cost=3.0)
    prices = [_price("flops", first, 30.0), _price("params", second, 30.0, fixed=9.0)]
    masks = _found(scores, prices)
    assert all(price.holds(masks) for price in prices)
    assert gained(masks, scores) >= _best(scores, prices) - max(float(score.max()) for score in scores.values())
    # Neither budget alone is met by what the other one allows, in most of these problems.
    assert gained(masks, scores) <= min(_best(scores, [price]) for price in prices) + 1e-6


def test_a_budget_that_another_one_implies_changes_nothing():
    scores, costs = problem(0)
    alone, loose = _price("flops", costs, 25.0), _price("params", costs, 40.0)
    for prices in ([alone, loose], [loose, alone]):
        assert gained(_found(scores, prices), scores) == pytest.approx(_best(scores, [alone]))


def _asked(seed, limits, sums=(True, True)):
    """What is searched for on the way to masks within two budgets, with the masks that are found, and the answer."""
    scores, first = problem(seed, heads=(3, 2), neurons=(6, 5))
    _, second = problem(seed, heads=(3, 2), neurons=(6, 5), head_cost=1.0, neuron_cost=3.0)
    second = {key: 1000 * table for key, table in second.items()}  # of other units
    prices = [_price("flops", first, limits[0]), _price("params", second, 1000 * limits[1], fixed=9000.0)]
    prices = [dataclasses.replace(price, sums=linear) for price, linear in zip(prices, sums, strict=True)]
    asked, weighed = [], []

    def find(tables, room):
        asked.append((tables, room))
        return search(scores, tables, room)

    def worth(masks):
        weighed.append(masks)
        return gained(masks, scores)

    return prices, asked, weighed, within(prices, find, worth)


@pytest.mark.parametrize(("limits", "which"), [((20.0, 48.0), 0), ((55.0, 25.0), 1)])
def test_what_is_best_under_one_budget_is_taken_where_the_other_holds(limits, which):
    prices, asked, weighed, masks = _asked(3, limits)
    assert [(tables is price.tables, room) for (tables, room), price in zip(asked, prices, strict=False)] == [
        (True, price.limit - price.fixed) for price in prices[: which + 1]
    ]
    assert len(asked) == which + 1 and not weighed
    assert all(price.holds(masks) for price in prices)
    *_, alone = _asked(3, limits, sums=(False, False))
    assert all(price.holds(alone) for price in prices), "the same by trying sums"
    assert {key: int(mask.sum()) for key, mask in alone.items()} == {
        key: int(mask.sum()) for key, mask in masks.items()
    }


def test_budgets_are_mixed_by_their_shares_and_those_that_are_not_spent_weigh_less():
    prices, asked, weighed, masks = _asked(1, (30.0, 30.0))
    assert len(weighed) == 6 and any(masks is each for each in weighed)
    scores, _ = problem(1, heads=(3, 2), neurons=(6, 5))
    assert gained(masks, scores) == max(gained(each, scores) for each in weighed)
    mixed = []
    for tables, _ in asked[2:]:
        if not mixed or tables is not mixed[-1]:
            mixed.append(tables)
    assert len(mixed) == len(weighed)
    weights = []
    for tables in mixed:  # of a head and a neuron, from what they cost in both
        rows = [
            [float(price.tables[f"layers.0.{role}"][1]) / price.limit for price in prices]
            for role in ("heads", "neurons")
        ]
        costs = [float(tables[f"layers.0.{role}"][1]) for role in ("heads", "neurons")]
        weights.append(torch.linalg.solve(torch.tensor(rows), torch.tensor(costs)).tolist())
        for key, table in tables.items():
            expected = sum(
                weight * price.tables[key] / price.limit for weight, price in zip(weights[-1], prices, strict=True)
            )
            torch.testing.assert_close(table.float(), expected.float())
        assert sum(weights[-1]) == pytest.approx(1)
    assert weights[0] == pytest.approx([0.5, 0.5])
    for before, after, found in zip(weights, weights[1:], weighed, strict=False):
        shares = [price.cost_of(found) / price.limit for price in prices]
        moved = [weight * share**8 for weight, share in zip(before, shares, strict=True)]
        assert after == pytest.approx([each / sum(moved) for each in moved], rel=1e-4)
    assert len({tuple(weight) for weight in weights}) > 1


def _stepped(table, step, jump):
    """Costs that rise by steps, as kernels have it, and with the first unit by what a whole sublayer costs besides."""
    units = torch.arange(len(table)).double()
    return table[-1] / (len(table) - 1) * (units / step).ceil() * step + jump * (units > 0) + 1e-6 * units


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.3, 0.6, 0.85])
def test_costs_that_are_not_linear(seed, share):
    scores, costs = problem(seed, heads=(4, 3), neurons=(9, 8))
    costs = {key: _stepped(table, 4 if "neurons" in key else 1, 6.0) for key, table in costs.items()}
    budget = share * sum(float(table[-1]) for table in costs.values())
    masks = search(scores, costs, budget)
    assert spent(masks, costs) <= budget
    best = _best(scores, [_price("latency", costs, budget)])
    assert gained(masks, scores) >= 0.8 * best
    for key, mask in masks.items():  # nothing more fits
        for more in range(int(mask.sum()) + 1, len(mask) + 1):
            assert spent(masks, costs) + float(costs[key][more] - costs[key][int(mask.sum())]) > budget


def test_a_whole_step_is_kept_where_it_costs_no_more_than_a_part():
    scores, costs = problem(1, neurons=(16, 16))
    costs = {key: _stepped(table, 4 if "neurons" in key else 1, 0.0) for key, table in costs.items()}
    masks = search(scores, costs, 0.5 * sum(float(table[-1]) for table in costs.values()))
    assert {int(mask.sum()) % 4 for key, mask in masks.items() if "neurons" in key} == {0}
    masks = search_uniform(scores, costs, 0.5 * sum(float(table[-1]) for table in costs.values()))
    assert len({int(mask.sum()) for key, mask in masks.items() if "neurons" in key}) == 1


@pytest.mark.parametrize(
    "budgets", [{"params": 0.8}, {"memory": "100KB"}, {"params": 0.8, "flops": 0.7}, {"flops": "0.2MMACs"}], ids=str
)
def test_models_are_as_small_as_asked(budgets, tmp_path):
    pruner = OptinPruner(tiny_model())
    dense = count_parameters(pruner.model), count_bytes(pruner.model)
    scores = pruner.score(tiny_samples(16), OptinConfig(probes=8, search="ranked"))
    config = OptinConfig(probes=8, search="ranked", **budgets)
    plan = pruner.plan(scores, config=config)
    pruned = pruner.prune(scores=scores, config=config, save_dir=tmp_path)
    report = pruner.report
    assert (report.params_dense, report.bytes_dense) == dense
    assert (report.params_pruned, report.bytes_pruned) == (count_parameters(pruned), count_bytes(pruned))
    assert plan.budgets == budgets
    for name, kept in plan.kept.items():
        assert kept == {"params": report.params_pruned, "memory": report.bytes_pruned}[name]
    left = {
        "params": report.params_pruned / report.params_dense,
        "memory": report.bytes_pruned / 100e3,
        "flops": report.flops_achieved if budgets.get("flops") == 0.7 else report.macs_pruned / 0.2e6,
    }
    asked = {name: value if isinstance(value, float) else 1.0 for name, value in budgets.items()}
    assert all(left[name] <= most for name, most in asked.items())
    assert any(left[name] > 0.98 * most for name, most in asked.items())  # what was asked for is used
    read = PruningReport.load(tmp_path)
    assert read.config["params"] == budgets.get("params") and read.bytes_pruned == report.bytes_pruned
    asks = [f"{name}={value}" for name, value in budgets.items()]
    assert (read.flops_requested is None) == ("0.7" not in str(budgets))
    if read.flops_requested is None:
        assert f"requested {' and '.join(asks)}, achieved" in str(read)
        assert f"asked {asks[0].replace('=', ' ')}" in (tmp_path / "README.md").read_text()


def test_what_cannot_be_met_names_the_least_that_can():
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(16), OptinConfig(probes=8, search="ranked"))
    message = r"params: a budget of 0\.1 of the dense cost is below .*, which costs 0\.\d+ of it \(\d+(\.\d+)?K\): ask"
    with pytest.raises(ValueError, match=message):
        pruner.plan(scores, config=OptinConfig(probes=8, search="ranked", params=0.1))
