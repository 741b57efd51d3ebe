"""The order of removal and its costs against brute-force refits."""

import itertools
from functools import partial

import pytest
import torch
from memory_taken import matrices_taken

from optimum_optin.scoring.removal import _DAMPING, Reader, _Left, _pool, removal_scores, root_of
from optimum_optin.sums.moments import Moments


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
    (scores,) = removal_scores([Reader(weight, covariance, [metric])], weight.shape[1] // width)
    assert scores.argsort().tolist() == order
    expected = _pool(torch.tensor(increments, dtype=torch.float64))
    torch.testing.assert_close(scores[order], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_inputs_beside_the_units_take_over_as_well(width):
    """As where a concatenation is read: the others stay, and count in each refit."""
    weight, covariance, metric = _problem(6, width)
    columns = slice(2 * width, 5 * width)
    costs = [_refit_cost(weight, covariance, metric, {*range(unit * width, (unit + 1) * width)}) for unit in (2, 3, 4)]
    every = _refit_cost(weight, covariance, metric, {*range(columns.start, columns.stop)})
    (scores,) = removal_scores([Reader(weight, covariance, [metric], columns)], 3)
    assert float(scores.min()) == pytest.approx(min(costs), rel=1e-6)
    assert int(scores.argmin()) == costs.index(min(costs))
    assert float(scores.sum()) == pytest.approx(every, rel=1e-6)


def test_where_inputs_are_too_many_units_cost_what_they_add_alone():
    weight, covariance, metric = _problem(6, 2)
    columns = slice(2, 10)  # two channels for each of two units, in blocks of two
    blocks = torch.stack([covariance[at : at + 2, at : at + 2] for at in range(0, 12, 2)])
    (scores,) = removal_scores([Reader(weight, blocks, [metric], columns)], 2)
    for unit, channels in enumerate([(1, 2), (3, 4)]):
        expected = 0
        for channel in channels:
            part, inside = weight[:, 2 * channel : 2 * channel + 2], blocks[channel]
            expected += float(torch.trace(metric @ part @ inside @ part.T))
        assert float(scores[unit]) == pytest.approx(expected, rel=1e-6)


def test_several_metrics_share_the_order_of_their_sum():
    weight, covariance, metric = _problem(6, 1)
    _, _, other = _problem(6, 1, seed=7)
    (together,) = removal_scores([Reader(weight, covariance, [metric + other])], weight.shape[1])
    one, two = removal_scores([Reader(weight, covariance, [metric, other])], weight.shape[1])
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
    (scores,) = removal_scores(
        [Reader(weight, x.T @ x / len(x), [torch.eye(16, dtype=torch.float64)])], weight.shape[1]
    )
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


def test_the_order_of_wide_readers_is_found_in_float32():
    """Where sums in float64 would take too much memory: nearly the same costs."""
    weight, covariance, metric = _problem(40, 1)
    (exact,) = removal_scores([Reader(weight, covariance, [metric])], 40)
    (found,) = removal_scores([Reader(weight, covariance.float(), [metric])], 40)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.log(), exact.log(), atol=0.02, rtol=0)


def test_wide_units_are_scored_with_several_threads():
    """Of three key-value heads of 192 columns each: PyTorch's batched `solve` hangs or is wrong there."""
    weight, covariance, metric = _problem(3, 192)
    (expected,) = removal_scores([Reader(weight, covariance, [metric])], 3)
    torch.set_num_threads(2)
    try:
        (found,) = removal_scores([Reader(weight, covariance, [metric])], 3)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(found, expected)


def test_shares_say_which_metric_the_order_goes_by():
    """By one metric alone: its own costs, as without the other; and those of the other along the same order."""
    weight, covariance, metric = _problem(9, 1)
    *_, other = _problem(9, 1, seed=1)
    (alone,) = removal_scores([Reader(weight, covariance, [metric])], 9)
    found, beside = removal_scores([Reader(weight, covariance, [metric, other])], 9, [1.0, 0.0])
    torch.testing.assert_close(found, alone)
    assert beside.argsort().tolist() == alone.argsort().tolist()


def _refit(readers, alive, width):
    """Of each reader W and H^-1 of the units that are left, solved for at once."""
    columns = [unit * width + offset for unit in alive for offset in range(width)]
    for weight, covariance, metrics in readers:
        damped = covariance + 1e-2 * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
        inverse = damped[columns][:, columns].inverse()
        yield weight @ damped[:, columns] @ inverse, inverse, metrics


def _removed_in_steps(readers, units, width, shares):
    """A step removes a 64th part of what is left, chosen one by one among four times as many; all solved for anew."""
    alive, order, paid = list(range(units)), [], []
    while alive:
        candidates = None
        for _ in range(max(1, len(alive) // 64)):
            costs = torch.zeros(len(shares), len(alive), dtype=torch.float64)
            for weight, inverse, metrics in _refit(readers, alive, width):
                units = torch.arange(len(alive))
                apart = inverse.view(len(alive), width, len(alive), width)[units, :, units].inverse()
                parts = weight.view(-1, len(alive), width)
                for number, metric in enumerate(metrics):
                    costs[number] += torch.einsum("oua,op,pub,uba->u", parts, metric, parts, apart)
            total = torch.tensor(shares, dtype=torch.float64) @ costs
            if candidates is None:
                candidates = [alive[place] for place in total.argsort(stable=True)[: 4 * max(1, len(alive) // 64)]]
            best = min((unit for unit in candidates if unit in alive), key=lambda unit: float(total[alive.index(unit)]))
            order.append(best)
            paid.append(costs[:, alive.index(best)])
            alive.remove(best)
    return order, torch.stack(paid, dim=1)


@pytest.mark.parametrize(("units", "width", "shares"), [(140, 1, [1.0, 1.0]), (66, 2, [1.0]), (140, 1, [0.1, 3.0])])
def test_several_units_go_in_a_step_in_the_order_of_single_refits(units, width, shares):
    readers = [_problem(units, width, seed)[:2] for seed in range(2)]
    metrics = [[_problem(1, 1, 10 * seed + number)[2] for number in range(len(shares))] for seed in range(2)]
    readers = [(*each, its) for each, its in zip(readers, metrics, strict=True)]
    order, paid = _removed_in_steps(readers, units, width, shares)
    given = [Reader(*each) for each in readers]
    for roots in (False, True):
        if roots:
            given = [Reader(*each, roots=[root_of(metric) for metric in each[2]]) for each in readers]
        scores = removal_scores(given, units, None if shares == [1.0, 1.0] else shares)
        for score, increments in zip(scores, paid, strict=True):
            assert score.argsort().tolist() == order
            torch.testing.assert_close(score[order], _pool(increments), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("size", [3, 6, 8])
def test_what_a_step_may_choose_from_decides_where_units_depend_on_each_other(size):
    """Groups in which each is minus the sum of the others: cheap, until one of them has gone."""
    draws = torch.Generator().manual_seed(size)
    x = torch.randn(400, 128, generator=draws, dtype=torch.float64)
    for first in range(0, 128 - size + 1, size):
        x[:, first] = -x[:, first + 1 : first + size].sum(1)
    weight = torch.randn(3, 128, generator=draws, dtype=torch.float64)
    weight = weight / weight.norm(dim=0) * (1.3 ** (torch.arange(128) // size))  # one group after the other
    readers = [(weight, x.T @ x / 400, [torch.eye(3, dtype=torch.float64)])]
    order, paid = _removed_in_steps(readers, 128, 1, [1.0])
    (scores,) = removal_scores([Reader(*readers[0])], 128)
    assert scores.argsort().tolist() == order
    torch.testing.assert_close(scores[order], _pool(paid[0]), rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("width", [1, 3])
def test_units_that_do_nothing_are_told_apart_by_their_order(width):
    """Nothing is read, or nothing was ever written: all cost nothing, and the earlier ones go first."""
    weight, covariance, metric = _problem(5, width)
    for dead in (Reader(weight * 0, covariance, [metric]), Reader(weight, covariance * 0, [metric])):
        (scores,) = removal_scores([dead], 5)
        assert (scores > 0).all() and (scores < 1e-9).all()
        assert len(set(scores.tolist())) == 5
    assert removal_scores([Reader(weight * 0, covariance, [metric])], 5)[0].argsort().tolist() == [0, 1, 2, 3, 4]


def test_no_cost_is_below_nothing_though_rounding_leaves_a_metric_there():
    weight, covariance, metric = _problem(4, 1)
    for inputs in (covariance, covariance[range(4), range(4)][:, None, None]):
        (scores,) = removal_scores([Reader(weight, inputs, [-1e-12 * metric])], 4)
        assert (scores >= 0).all() and (scores < 1e-9).all()


def test_numbers_that_are_not_finite_are_refused_by_what_they_are():
    weight, covariance, metric = _problem(4, 1)
    for broken in (torch.nan, torch.inf):
        with pytest.raises(ValueError, match="gradients at its output are not finite"):
            removal_scores([Reader(weight, covariance, [metric, metric * broken])], 4)
        with pytest.raises(ValueError, match="sums of its activations are not finite"):
            removal_scores([Reader(weight, covariance * broken, [metric])], 4)
        with pytest.raises(ValueError, match="sums of its activations are not finite"):
            removal_scores([Reader(weight, (covariance * broken)[None], [metric])], 4)


def test_a_root_of_a_metric_gives_it_back_but_for_what_rounding_left_below_nothing():
    metric = _problem(1, 1)[2]
    root = root_of(metric)
    torch.testing.assert_close(root @ root.T, metric)
    values, vectors = torch.linalg.eigh(metric)
    below = vectors @ torch.diag(torch.tensor([-1e-3, *values[1:]], dtype=torch.float64)) @ vectors.T
    above = vectors @ torch.diag(torch.tensor([0.0, *values[1:]], dtype=torch.float64)) @ vectors.T
    torch.testing.assert_close(root_of(below) @ root_of(below).T, above)


@pytest.mark.parametrize("rows", [20, 400], ids=["few gradients", "many"])
def test_a_root_is_as_exact_for_outputs_of_small_gradients(rows):
    """One output has none, others a ten-thousandth of the largest; most have no mean, as behind a layer norm."""
    drawn = torch.Generator().manual_seed(0)
    gradients = torch.randn(rows, 48, generator=drawn) * torch.logspace(-2, 2, 48)
    gradients[:, 3] = 0
    gradients[:, 10:] -= gradients[:, 10:].mean(1, keepdim=True)
    metric = (gradients.T @ gradients).double()
    scale = metric.diagonal().sqrt()
    off = (root_of(metric) @ root_of(metric).T - metric).abs()
    assert (off <= 2e-6 * scale[:, None] * scale).all()


def test_what_is_inverted_takes_the_memory_of_one_matrix():
    """Its factor and its inverse take the place of the covariance."""
    units, drawn = 2000, torch.Generator().manual_seed(0)
    sums = Moments(units, dtype=torch.float32)
    sums.add(torch.randn(100, units, generator=drawn))
    weight, metric = torch.randn(8, units, generator=drawn), torch.eye(8, dtype=torch.float64)
    reader = Reader(weight, partial(sums.covariance, True, torch.float64), [metric])
    covariance = sums.covariance(True)
    covariance.diagonal().add_(_DAMPING * covariance.diagonal().mean())
    expected = torch.linalg.inv(covariance)
    torch.testing.assert_close(_Left.of(reader, units).inverse, expected)
    assert matrices_taken(lambda: _Left.of(reader, units), units) < 1.3
