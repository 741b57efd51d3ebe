"""Losses against loops, and probes against the curvature they stand for."""

import pytest
import torch

from optimum_optin.losses import manifold_distance, output_distance, probe_manifold, probe_output, token_features


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
    assert float(output_distance(student, teacher, 2.0, True)) == pytest.approx(4 * float(expected), rel=1e-4)


def test_output_distance_of_one_logit_is_squared_error():
    student, teacher = torch.randn(2, 5, 1)
    expected = float(((student - teacher) ** 2).mean())
    assert float(output_distance(student, teacher, 1.0, False)) == pytest.approx(expected, rel=1e-5)
    assert float(output_distance(student, teacher, 1.0, True)) == 0  # why the categorical form would not do


@pytest.mark.parametrize(
    ("name", "categorical", "temperature"),
    [("manifold", None, None), ("kl", True, 1.0), ("kl hot", True, 3.0), ("squared", False, 1.0)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_probes_expect_the_loss_of_a_small_step(name, categorical, temperature):
    """E[(r . J step)^2] equals the loss of a step, for a step small enough."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    step = 1e-3 * torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def probe(values):
        if name == "manifold":
            return probe_manifold(values, generator)
        return probe_output(values, temperature, categorical, generator)

    squares = []
    for _ in range(4000):
        values = teacher.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(probe(values), values)
        squares.append(float((gradient * step).sum() ** 2))
    expected = (
        manifold_distance(teacher + step, teacher)
        if name == "manifold"
        else output_distance((teacher + step).float(), teacher.float(), temperature, categorical)
        if not categorical
        else _kl(teacher + step, teacher, temperature)
    )
    assert sum(squares) / len(squares) == pytest.approx(float(expected), rel=0.1)


def _kl(student, teacher, temperature):
    log_student, log_teacher = ((each / temperature).log_softmax(-1) for each in (student, teacher))
    return (log_teacher.exp() * (log_teacher - log_student)).sum(-1).mean() * temperature**2
