"""Streamed ridge regression against the direct solution."""

import pytest
import torch

from optimum_optin.compensation.ridge import STRENGTHS, Regression, solve_ridge


def _rows(count, seed=0, inputs=6, outputs=3, noise=0.1):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(99))
    x = torch.randn(count, inputs, generator=generator) + 2.0
    return x, x @ truth.T + 5.0 + noise * torch.randn(count, outputs, generator=generator)


def _streamed(x, errors, weights=None):
    weights = torch.ones(len(x)) if weights is None else weights
    sums = Regression(x.shape[1], errors.shape[1])
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
    assert known.count == 40


@pytest.mark.parametrize("intercept", [True, False])
def test_sums_of_wide_linears_are_in_float32_and_give_nearly_the_same(intercept, monkeypatch):
    x, errors = _rows(400)
    expected = solve_ridge(_streamed(x[80:], errors[80:]), _streamed(x[:80], errors[:80]), intercept)
    monkeypatch.setattr("optimum_optin.passes.moments._WIDE", 4)
    fit, held_out = _streamed(x[80:], errors[80:]), _streamed(x[:80], errors[:80])
    assert fit.inputs.gram.dtype == torch.float32
    for found, exact in zip(solve_ridge(fit, held_out, intercept), expected, strict=True):
        torch.testing.assert_close(found, exact, atol=1e-4, rtol=1e-3)
        assert found.dtype == torch.float64
