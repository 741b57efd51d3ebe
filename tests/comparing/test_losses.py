"""Losses against loops, and probes against the curvature they stand for."""

import pytest
import torch
from memory_taken import memory_taken

from optimum_optin.comparing.losses import (
    BINARY,
    CATEGORICAL,
    REAL,
    manifold_distance,
    output_distance,
    probe_manifold,
    probe_output,
    token_features,
)


def test_token_features_are_unit_rows_of_the_chosen_tokens():
    hidden = torch.randn(2, 3, 5)
    features = token_features(hidden, torch.tensor([0, 4]))
    torch.testing.assert_close(features[0], hidden[0, 0] / hidden[0, 0].norm())
    torch.testing.assert_close(features[1], hidden[1, 1] / hidden[1, 1].norm())


def test_manifold_distance_is_the_sum_over_pairs():
    student, teacher = torch.randn(2, 4, 6)
    expected = sum(float(student[i] @ student[j] - teacher[i] @ teacher[j]) ** 2 for i in range(4) for j in range(4))
    assert float(manifold_distance(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_output_distance_is_kl_at_the_temperature():
    student, teacher = torch.randn(2, 5, 7)
    expected = torch.nn.functional.kl_div(
        (student / 2).log_softmax(-1), (teacher / 2).softmax(-1), reduction="batchmean"
    )
    assert float(output_distance(student, teacher, 2.0, CATEGORICAL)) == pytest.approx(4 * float(expected), rel=1e-4)


def test_output_distance_of_one_logit_is_squared_error():
    student, teacher = torch.randn(2, 5, 1)
    expected = float(((student - teacher) ** 2).mean())
    assert float(output_distance(student, teacher, 1.0, REAL)) == pytest.approx(expected, rel=1e-5)
    assert float(output_distance(student, teacher, 1.0, CATEGORICAL)) == 0  # why the categorical form would not do


@pytest.mark.parametrize("kind", [CATEGORICAL, BINARY])
def test_output_distance_of_all_but_equal_outputs_is_never_negative(kind):
    """Rounding takes about half of these divergences below 0, which scores must not be."""
    teacher = torch.randn(200, 1, 50, generator=torch.Generator().manual_seed(0))
    distances = [float(output_distance(each + 1e-7, each, 1.0, kind)) for each in teacher]
    assert all(0 <= distance < 1e-5 for distance in distances)


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [(None, 1.0), (CATEGORICAL, 1.0), (CATEGORICAL, 3.0), (BINARY, 1.0), (BINARY, 2.0), (REAL, 1.0)],
    ids=["manifold", "softmax", "softmax hot", "sigmoid", "sigmoid hot", "real"],
)
def test_probes_expect_the_loss_of_a_small_step(kind, temperature, monkeypatch):
    """E[(r . J step)^2] equals the loss of a step, for a step small enough."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)  # the loss of so small a step needs the digits
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    step = 1e-3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)
    squares = []
    for _ in range(4000):
        values = teacher.clone().requires_grad_()
        probe = probe_output(values, temperature, kind, generator) if kind else probe_manifold(values, generator)
        (gradient,) = torch.autograd.grad(probe, values)
        squares.append(float((gradient * step).sum() ** 2))
    moved = teacher + step
    expected = output_distance(moved, teacher, temperature, kind) if kind else manifold_distance(moved, teacher)
    assert sum(squares) / len(squares) == pytest.approx(float(expected), rel=0.1)


def test_output_distance_of_sigmoids_is_the_sum_of_bernoulli_divergences():
    student, teacher = torch.randn(2, 5, 3)
    bernoulli = torch.distributions.Bernoulli
    expected = torch.distributions.kl_divergence(bernoulli(logits=teacher), bernoulli(logits=student)).sum(-1).mean()
    assert float(output_distance(student, teacher, 1.0, BINARY)) == pytest.approx(float(expected), rel=1e-4)


BATCHES = (slice(0, 5), slice(5, 9))


@pytest.mark.parametrize("kind", [CATEGORICAL, BINARY, REAL], ids=["softmax", "sigmoids", "real"])
def test_agreement_is_counted_row_by_row(kind):
    """Against loops over rows and classes; sums of two batches are those of all rows."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 9, 4, generator=generator)
    student[:3], student[3], student[8], teacher[8] = teacher[:3], 0.0, 1.0, 0.0
    both = (kind.sums(student[part], teacher[part]) for part in BATCHES)
    sums = [one + other for one, other in zip(*both, strict=True)]
    expected = 0.0
    for ours, theirs in zip(student.tolist(), teacher.tolist(), strict=True):
        if kind is CATEGORICAL:
            expected += (ours.index(max(ours)) == theirs.index(max(theirs))) / 9
        elif kind is BINARY:
            expected += sum((one > 0) == (other > 0) for one, other in zip(ours, theirs, strict=True)) / 4 / 9
    if kind is REAL:
        expected = 1 - float((student - teacher).square().sum() / (teacher - teacher.mean(0)).square().sum())
        sums[0], expected = sums[0] / 4, 1 - (1 - expected) / 4  # which the whole error would bring below 0
    assert kind.agreement(9.0, sums) == pytest.approx(expected, rel=1e-5)


def test_no_agreement_is_below_nothing_or_of_constant_outputs():
    teacher = torch.tensor([[1000.0, 1.0], [1000.0, 3.0]])
    for student, expected in ((teacher, 1.0), (teacher + 2, 0.0), (teacher + torch.tensor([0.0, 0.5]), 0.75)):
        assert REAL.agreement(2.0, REAL.sums(student, teacher)) == pytest.approx(expected)
    assert REAL.agreement(1.0, REAL.sums(teacher[:1], teacher[:1])) is None
    for constant in (torch.zeros(2, 2), torch.full((2, 2), 0.1)):
        assert REAL.agreement(2.0, REAL.sums(constant + 1, constant)) is None


def test_distances_of_real_numbers_are_summed_over_channels_and_averaged_over_rows():
    student, teacher = torch.randn(2, 5, 3)
    expected = sum(float((one - other).square().sum()) for one, other in zip(student, teacher, strict=True)) / 5
    assert float(output_distance(student, teacher, 7.0, REAL)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", [CATEGORICAL, BINARY, REAL])
def test_distances_of_outputs_in_half_precision_are_those_in_float32(kind, dtype):
    student, teacher = torch.randn(2, 30, 7).to(dtype)
    of_floats = output_distance(student.float(), teacher.float(), 2.0, kind)
    assert torch.equal(output_distance(student, teacher, 2.0, kind), of_floats)
    for one, other in zip(kind.sums(student, teacher), kind.sums(student.float(), teacher.float()), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kind", [CATEGORICAL, BINARY])
def test_distances_of_some_rows_at_a_time_are_those_of_all(kind, monkeypatch):
    student, teacher = torch.randn(2, 30, 7)
    at_once = output_distance(student, teacher, 2.0, kind)
    monkeypatch.setattr("optimum_optin.comparing.losses._PART", 50)  # seven rows
    assert torch.equal(output_distance(student, teacher, 2.0, kind), at_once)


def test_the_distance_of_a_vocabulary_takes_less_memory_than_its_outputs_in_float32():
    student, teacher = torch.randn(2, 300, 100_000).bfloat16()
    taken = memory_taken(lambda: output_distance(student, teacher, 1.0, CATEGORICAL))
    assert taken < 4 * (student.numel() + teacher.numel())  # all rows at once take three times as much
