"""The surgeon's removal costs against brute-force refits."""

import itertools

import pytest
import torch
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.surgeon import _DAMPING, _pool, removal_scores


def _problem(units, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = units * width
    weight = torch.randn(3, size, generator=generator, dtype=torch.float64)
    x = torch.randn(50, size, generator=generator, dtype=torch.float64) @ torch.randn(
        size, size, generator=generator, dtype=torch.float64
    )
    g = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    return weight, x.T @ x / 50, g.T @ g


def _refit_cost(weight, covariance, metric, removed):
    """min over W' without the removed columns of tr(Gamma (W - W') H (W - W')^T), by solving for W'."""
    damped = covariance + _DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    kept = [column for column in range(weight.shape[1]) if column not in removed]
    refitted = torch.zeros_like(weight)
    if kept:
        refitted[:, kept] = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ weight.T).T
    change = weight - refitted
    return float(torch.trace(metric @ change @ damped @ change.T))


@pytest.mark.parametrize(("units", "width"), [(5, 1), (4, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_order_and_costs_equal_brute_force(units, width, seed):
    weight, covariance, metric = _problem(units, width, seed)
    removed, total, increments, order = set(), 0.0, [], []
    while len(order) < units:
        costs = {}
        for unit in set(range(units)) - set(order):
            columns = removed | set(range(unit * width, (unit + 1) * width))
            costs[unit] = _refit_cost(weight, covariance, metric, columns)
        best = min(costs, key=costs.get)
        order.append(best)
        removed |= set(range(best * width, (best + 1) * width))
        increments.append(costs[best] - total)
        total = costs[best]
    (scores,) = removal_scores(weight, covariance, [metric], width)
    assert scores.argsort().tolist() == order
    expected = _pool(torch.tensor(increments, dtype=torch.float64))
    torch.testing.assert_close(scores[order], expected, rtol=1e-6, atol=1e-9)


def test_several_metrics_share_the_order_of_their_sum():
    weight, covariance, metric = _problem(6, 1)
    _, _, other = _problem(6, 1, seed=7)
    (together,) = removal_scores(weight, covariance, [metric + other], 1)
    one, two = removal_scores(weight, covariance, [metric, other], 1)
    order = together.argsort()
    assert one.argsort().tolist() == two.argsort().tolist() == order.tolist()
    assert float((one + two).sum()) == pytest.approx(float(together.sum()))


@pytest.mark.parametrize("pairs", [8, 256])
def test_of_twins_one_stays(pairs):
    """With many units a step removes several; it must not remove both of two that can replace each other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * pairs, pairs, generator=generator, dtype=torch.float64).repeat(1, 2)
    x = x + 1e-3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 2 * pairs, generator=generator, dtype=torch.float64)
    (scores,) = removal_scores(weight, x.T @ x / len(x), [torch.eye(16, dtype=torch.float64)], 1)
    kept = scores.argsort(descending=True)[:pairs] % pairs
    assert len(set(kept.tolist())) == pairs


def test_pooling_is_isotonic_regression():
    values = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0], dtype=torch.float64)
    pooled = _pool(values)
    assert (pooled.diff() >= 0).all()
    assert float(pooled.sum()) == pytest.approx(float(values.sum()))
    # No other non-decreasing sequence of these averages is nearer.
    grid = sorted({float(values[i:j].mean()) for i, j in itertools.combinations(range(7), 2)})
    nearest = min(
        float((values - torch.tensor(each, dtype=torch.float64)).square().sum())
        for each in itertools.combinations_with_replacement(grid, 6)
    )
    assert float((values - pooled).square().sum()) == pytest.approx(nearest)


def test_a_unit_that_another_can_replace_costs_little():
    model = tiny_model()
    with torch.no_grad():
        dense = model.bert.encoder.layer[0].intermediate.dense
        dense.weight[1] = dense.weight[0]
        dense.bias[1] = dense.bias[0]
    scores = OptinPruner(model).score(tiny_samples(100), OptinConfig(scorer="surgeon", probes=16))
    neurons = scores.terms["trajectory"]["layers.0.neurons"]
    assert min(neurons[0], neurons[1]) < 0.2 * neurons.median()


def test_the_surgeon_serves_the_whole_road():
    pruner = OptinPruner(tiny_model("modernbert"))
    pruner.prune(tiny_samples(100), OptinConfig(flops=0.5, scorer="surgeon", probes=16))
    assert 0.4 < pruner.report.flops_achieved <= 0.5
    scores = pruner.score(tiny_samples(100), OptinConfig(scorer="surgeon", probes=16))
    for group in find_groups(pruner.model):
        values = scores.terms["trajectory"][group.key]
        assert (values > 0).all()
        assert len(set(values.tolist())) == group.units, "the order of removal must survive ranking"
