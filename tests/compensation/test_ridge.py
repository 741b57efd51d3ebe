"""Streamed ridge regression against the direct solution."""

import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from memory_taken import matrices_taken

from optimum_optin.compensation import ridge
from optimum_optin.compensation.ridge import STRENGTHS, Regression, add_up_regressions, begin_together, solve_ridge
from optimum_optin.running import processes


def _rows(count, seed=0, inputs=6, outputs=3, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(99))
    x = torch.randn(count, inputs, generator=generator) + 2.0
    return x, x @ truth.T + 5.0 + noise * torch.randn(count, outputs, generator=generator)


def _streamed(x, errors, weights=None):
    weights = torch.ones(len(x)) if weights is None else weights
    sums = Regression(x.shape[1], errors.shape[1])
    sums.inputs.begin(torch.full((x.shape[1],), 2.5, dtype=torch.float64))
    for start in range(0, len(x), 7):
        part = slice(start, start + 7)
        sums.add(x[part], errors[part], weights[part])
    return sums


def _direct(x, errors, strength, intercept):
    """Ridge by least squares on rows extended by the pull."""
    x, errors = x.double(), errors.double()
    mean, error_mean = (x.mean(0), errors.mean(0)) if intercept else (torch.zeros(x.shape[1]), torch.zeros(3))
    centred = x - mean
    pull = strength * centred.square().sum(0).mean() + 1e-5 * x.square().sum(0).mean()
    rows = torch.cat([centred, pull.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
    targets = torch.cat([errors - error_mean, torch.zeros(x.shape[1], 3, dtype=torch.float64)])
    weight = torch.linalg.lstsq(rows, targets).solution.T
    return weight, error_mean - weight @ mean.double()


@pytest.mark.parametrize("intercept", [True, False], ids=["bias", "no bias"])
def test_it_is_the_ridge_solution_at_the_best_strength_on_held_out_rows(intercept):
    x, errors = _rows(40)
    held_x, held_errors = _rows(30, seed=1)
    weight, bias = solve_ridge(_streamed(x, errors), _streamed(held_x, held_errors), intercept)

    def held_out_loss(strength):
        change, shift = _direct(x, errors, strength, intercept)
        return float((held_errors - held_x.double() @ change.T - (shift if intercept else 0)).square().sum())

    best = min(STRENGTHS, key=held_out_loss)
    expected, shift = _direct(torch.cat([x, held_x]), torch.cat([errors, held_errors]), best, intercept)
    torch.testing.assert_close(weight, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, shift if intercept else torch.zeros_like(bias), atol=1e-3, rtol=1e-3)


def test_loss_from_sums_is_the_loss_of_the_rows():
    x, errors = _rows(20)
    weight, bias = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    expected = float((errors - x.double() @ weight.T - bias).square().sum())
    assert _streamed(x, errors).loss(weight, bias) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("intercept", [True, False], ids=["bias", "no bias"])
def test_a_weight_counts_a_row_as_often(intercept):
    x, errors = _rows(40)
    times = torch.arange(40) % 3
    weighted = solve_ridge(_streamed(x, errors, times.float()), Regression(6, 3), intercept)
    repeated = _streamed(x.repeat_interleave(times, 0), errors.repeat_interleave(times, 0))
    for got, expected in zip(weighted, solve_ridge(repeated, Regression(6, 3), intercept), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)


def test_nothing_changes_if_held_out_rows_disagree():
    x, errors = _rows(40)
    weight, bias = solve_ridge(_streamed(x, errors), _streamed(x, -errors), True)
    assert not weight.any()
    assert not bias.any()


@pytest.mark.parametrize("held_out", [True, False])
def test_constant_and_too_few_rows_stay_well_posed(held_out):
    x = torch.ones(4, 6)
    x[:, 0] = 0
    errors = torch.randn(4, 3)
    sums, empty = _streamed(x, errors), Regression(6, 3)
    weight, bias = solve_ridge(sums, sums if held_out else empty, True)
    assert weight.isfinite().all()
    torch.testing.assert_close(x.double() @ weight.T + bias, errors.double().mean(0).expand(4, 3), atol=1e-3, rtol=1e-3)


def test_without_inputs_the_bias_takes_the_mean():
    errors = torch.randn(8, 3)
    sums = _streamed(torch.zeros(8, 0), errors)
    weight, bias = solve_ridge(sums, sums, True)
    assert weight.shape == (3, 0)
    torch.testing.assert_close(bias, errors.double().mean(0), atol=1e-6, rtol=1e-6)


def test_sums_of_other_errors_are_those_of_all_rows_anew():
    x, errors = _rows(40)
    others, weights = errors.flip(0) ** 2, torch.rand(40)
    known = _streamed(x, errors, weights).of_other_errors()
    for start in range(0, 40, 9):
        part = slice(start, start + 9)
        known.add(x[part], others[part], weights[part])
    for found, expected in zip(
        solve_ridge(known, Regression(6, 3), True, 1e-3),
        solve_ridge(_streamed(x, others, weights), Regression(6, 3), True, 1e-3),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert known.inputs.count == 40


@pytest.mark.parametrize("intercept", [True, False])
def test_sums_of_wide_linears_are_in_float32_and_give_nearly_the_same(intercept, monkeypatch):
    x, errors = _rows(400)
    expected = solve_ridge(_streamed(x[80:], errors[80:]), _streamed(x[:80], errors[:80]), intercept)
    monkeypatch.setattr("optimum_optin.sums.moments._WIDE", 4)
    fit, held_out = _streamed(x[80:], errors[80:]), _streamed(x[:80], errors[:80])
    weight, bias = solve_ridge(fit, held_out, intercept)
    assert fit.inputs.products.packed.dtype == weight.dtype == torch.float32
    for found, exact in zip((weight.double(), bias), expected, strict=True):  # which are float64, and so is the bias
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-3)
    assert bias.dtype == torch.float64


class Losses:
    """Held-out rows whose losses are given: of each strength from the weakest on, and of no change."""

    def __init__(self, losses, nothing):
        self.losses, self.error_squares = iter(losses), torch.tensor(nothing)

    def loss(self, weight, bias):
        return next(self.losses)


@pytest.mark.parametrize(
    ("losses", "nothing", "best"),
    [
        ([6.0, 5.0, 4.0, 3.0, 2.0, 1.0], 9.0, 10.0),
        ([1.0, 2.0, 0.5, 0.4, 0.3, 0.2], 9.0, 1e-4),  # it stops where the loss grows
        ([3.0, 2.0, 2.0, 4.0, 1.0, 1.0], 9.0, 1e-2),  # of equal ones, the strongest
        ([3.0, 2.0, 4.0, 1.0, 1.0, 1.0], 2.0, None),  # no better than no change
        ([3.0, 2.0, 4.0, 1.0, 1.0, 1.0], 2.5, 1e-3),
        ([torch.inf] * 6, torch.inf, None),
    ],
)
def test_strengths_a_decade_apart_are_tried_while_the_loss_does_not_grow(losses, nothing, best):
    assert tuple(10.0**power for power in range(-4, 2)) == STRENGTHS
    assert ridge._best_strength(_streamed(*_rows(40)), Losses(losses, nothing), True) == best


@pytest.mark.parametrize("rows", [12, 40, 400], ids=["strong pull", "middling", "weak pull"])
def test_strengths_of_many_outputs_are_chosen_on_combinations_of_them(rows, monkeypatch):
    assert ridge._COMBINATIONS < 300
    fit, held_out = (_streamed(*_rows(rows, seed, outputs=300, noise=1.0)) for seed in (0, 1))
    found, tried = solve_ridge(fit, held_out, True), ridge._best_strength(fit, held_out, True)
    monkeypatch.setattr(ridge, "_COMBINATIONS", 300)
    assert tried == ridge._best_strength(fit, held_out, True)
    for one, other in zip(found, solve_ridge(fit, held_out, True), strict=True):
        assert torch.equal(one, other)


def test_combinations_lose_what_all_outputs_lose_on_average_and_exactly_for_a_single_one():
    x, errors = _rows(40, outputs=300, noise=3.0)
    alone = torch.zeros_like(errors)
    alone[:, 7] = errors[:, 7]
    signs = ridge._signs(errors[0].double())
    for each, tolerance in ((errors, 0.1), (alone, 1e-9)):
        sums = _streamed(x, each)
        mixed = sums.of_combinations(signs)
        nothing = float(sums.error_squares)
        lost, expected = (one.loss(*ridge._solve(one, 1.0, True)) - nothing for one in (mixed, sums))
        assert lost == pytest.approx(expected, rel=tolerance)
    torch.testing.assert_close(signs @ signs.T, torch.eye(300).double(), atol=0.5, rtol=0)


@pytest.mark.parametrize("intercept", [True, False], ids=["bias", "no bias"])
def test_a_strength_that_is_given_is_taken_and_without_a_choice_a_middling_one(intercept):
    (x, errors), (held_x, held_errors) = _rows(40), _rows(30, seed=1)
    rows = torch.cat([x, held_x]), torch.cat([errors, held_errors])
    fit, held_out, whole, empty = (
        _streamed(x, errors),
        _streamed(held_x, held_errors),
        _streamed(*rows),
        _streamed(x[:0], errors[:0]),
    )
    for strength, found in (
        (10.0, solve_ridge(fit, held_out, intercept, 10.0)),  # however bad on held-out rows
        (1e-2, solve_ridge(whole, empty, intercept)),
        (1e-2, solve_ridge(empty, whole, intercept)),
    ):
        weight, bias = _direct(*rows, strength, intercept)
        torch.testing.assert_close(found[0], weight, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[1], bias if intercept else torch.zeros_like(bias), atol=1e-3, rtol=1e-3)
    padding = _streamed(*rows, torch.zeros(len(rows[0])))
    assert all(map(torch.equal, solve_ridge(whole, padding, intercept), solve_ridge(whole, empty, intercept)))
    for nothing in (empty, padding):
        assert not any(change.any() for change in solve_ridge(nothing, nothing, intercept))


def test_the_sums_of_two_are_those_of_all_rows():
    (x, errors), (other_x, other_errors) = _rows(20), _rows(15, seed=1)
    both = _streamed(x, errors).merged(_streamed(other_x - 7, other_errors))
    whole = _streamed(torch.cat([x, other_x - 7]), torch.cat([errors, other_errors]))
    weight, bias = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert both.loss(weight, bias) == pytest.approx(whole.loss(weight, bias), rel=1e-4)
    for centred in (True, False):
        for found, expected in zip(both.normal_equations(centred), whole.normal_equations(centred), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-2, rtol=1e-4)
    assert both.inputs.count == 35


@pytest.fixture
def two_processes(monkeypatch):
    """Runs a function of a process's number on both of two; threads stand for them, and meet where they send."""
    meeting, said, here = threading.Barrier(2, timeout=20), {}, threading.local()

    def all_reduce(tensor):
        said[here.place] = tensor.clone()
        meeting.wait()
        tensor.add_(said[1 - here.place])
        meeting.wait()

    def run(compute):
        def on(place):
            here.place = place
            return compute(place)

        monkeypatch.setattr(
            processes, "state", lambda: SimpleNamespace(num_processes=2, process_index=here.place, device="cpu")
        )
        monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
        with ThreadPoolExecutor(2) as pool:
            found = list(pool.map(on, range(2)))
        monkeypatch.undo()
        return found

    return run


@pytest.mark.parametrize("counts", [(20, 15), (20, 0)], ids=str)
def test_sums_of_several_processes_are_those_of_all_rows(counts, two_processes):
    def worked(place):
        x, errors = rows[place]
        fit, held_out = Regression(6, 3), Regression(6, 3)
        begin_together([fit, held_out], x[:10] if len(x) else None)
        fit.add(x[3:], errors[3:])
        held_out.add(x[:3], errors[:3])
        add_up_regressions([fit, held_out])
        known = fit.of_other_errors()
        known.add(x[3:], errors[3:] ** 2)
        add_up_regressions([known])
        return fit, known, fit.merged(held_out)

    rows = [_rows(counts[0]), _rows(counts[1], seed=1)]
    rows[1][0].sub_(7)
    ends = [torch.cat([part[3:] for part in parts]) for parts in zip(*rows, strict=True)]
    expected = [_streamed(*ends), _streamed(ends[0], ends[1] ** 2), _streamed(*map(torch.cat, zip(*rows, strict=True)))]
    weight, bias = torch.randn(3, 6, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    first = torch.cat([x[:10].double() for x, _ in rows])
    for found in two_processes(worked):
        torch.testing.assert_close(found[0].inputs.shift, first.mean(0), rtol=1e-6, atol=1e-6)
        for each, whole in zip(found, expected, strict=True):
            assert each.inputs.count == whole.inputs.count and each.weight == whole.weight
            assert each.loss(weight, bias) == pytest.approx(whole.loss(weight, bias), rel=1e-4)
            for centred in (True, False):
                torch.testing.assert_close(each.products(centred), whole.products(centred), atol=0.1, rtol=1e-4)


def test_sums_that_no_process_has_rows_of_are_nothing(two_processes):
    def worked(place):
        sums = [Regression(6, 3), Regression(6, 3)]
        begin_together(sums, None)
        add_up_regressions(sums)
        return sums

    for sums in two_processes(worked):
        assert not any(change.any() for change in solve_ridge(*sums, True))


@pytest.mark.parametrize("strength", [None, 1e-2])
@pytest.mark.parametrize("rows", [12, 40, 400], ids=["strong pull", "middling", "weak pull"])
@pytest.mark.parametrize("combinations", [2, 3], ids=["of many outputs", "of few"])
def test_several_processes_that_share_a_regression_find_what_one_finds(
    strength, rows, combinations, two_processes, monkeypatch
):
    solved = []
    monkeypatch.setattr(ridge, "_COMBINATIONS", combinations)
    sums = [_streamed(*_rows(rows)), _streamed(*_rows(rows, seed=1))]
    expected = solve_ridge(*sums, True, strength)
    solve = ridge._solve
    monkeypatch.setattr(ridge, "_solve", lambda *args: solved.append(args[1:]) or solve(*args))
    one, other = two_processes(lambda place: solve_ridge(*sums, True, strength))
    for mine, yours, each in zip(one, other, expected, strict=True):
        assert torch.equal(mine, yours)
        torch.testing.assert_close(mine, each, atol=1e-9, rtol=1e-9)
    tried = [each[0] for each in solved if len(each) == 2]
    assert sorted(each[2] for each in solved if len(each) == 3) == [slice(0, 1), slice(1, 3)]
    assert sorted(tried) == sorted(set(tried)) and bool(tried) == (strength is None)  # none twice


def test_a_strength_that_is_left_over_is_tried_by_all_processes(two_processes, monkeypatch):
    monkeypatch.setattr(ridge, "STRENGTHS", STRENGTHS[-3:])
    x = _rows(40)[0] - 2
    sums = [_streamed(x, x[:, :3]), _streamed(x, 0.1 * x[:, :3])]  # so that the strongest pull is the best
    expected, solve, tried = solve_ridge(*sums, False), ridge._solve, []
    monkeypatch.setattr(ridge, "_solve", lambda *args: tried.append(args[1]) or solve(*args))
    for found in two_processes(lambda place: solve_ridge(*sums, False)):
        for mine, each in zip(found, expected, strict=True):
            torch.testing.assert_close(mine, each, atol=1e-9, rtol=1e-9)
    assert tried.count(STRENGTHS[-1]) == 4 and expected[0].any()  # twice to choose it, twice to solve for parts


@pytest.mark.parametrize("inputs", [0, 1, 2])
def test_few_inputs_are_fitted_like_many(inputs):
    x, errors = _rows(30)
    weight, bias = solve_ridge(_streamed(x[:, :inputs], errors), Regression(inputs, 3), True)
    expected, shift = _direct(x[:, :inputs], errors, 1e-2, True) if inputs else (torch.zeros(3, 0), errors.mean(0))
    torch.testing.assert_close(weight, expected.double(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(bias, shift.double(), atol=1e-3, rtol=1e-3)


def test_a_solution_takes_half_a_matrix_for_each_of_both_sums_and_one_to_solve():
    """Beside them, numbers of inputs times outputs and a few bands; matrices are in float32."""
    inputs, outputs = 2000, 50
    mixed = torch.randn(5, inputs)

    def solved():
        sums = Regression(inputs, outputs), Regression(inputs, outputs)
        begin_together(sums, None)
        for each in sums:
            x = torch.randn(40, 5) @ mixed
            each.add(x, x[:, :outputs])
        assert solve_ridge(*sums, True)[0].any()

    solved()  # what libraries set up stays
    assert matrices_taken(solved, inputs) < (0.5 + 0.5 + 1) / 2 + 0.5
