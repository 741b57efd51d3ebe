"""Kinds of output against the formulas as they were written with `kind` switched on, bit by bit; and a new kind."""

import pytest
import torch
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.comparing.losses import BINARY, CATEGORICAL, REAL, output_distance, probe_output
from optimum_optin.passes import outputs
from optimum_optin.passes.outputs import Output
from optimum_optin.search.divergence import _Sums

KINDS = {"categorical": CATEGORICAL, "binary": BINARY, "real": REAL}


def _distance(student, teacher, temperature, kind):
    student, teacher = student.float(), teacher.float()
    if kind == "real":
        return (student - teacher).square().sum(-1).mean()
    log_student, log_teacher = (_log_shares(logits / temperature, kind) for logits in (student, teacher))
    divergence = (log_teacher.exp() * (log_teacher - log_student)).flatten(1).sum(-1)
    return divergence.clamp_min(0).mean() * temperature**2


def _log_shares(logits, kind):
    if kind == "categorical":
        return logits.log_softmax(-1)
    return torch.nn.functional.logsigmoid(torch.stack([logits, -logits], dim=-1))


def _probe(output, temperature, kind, generator):
    noise = torch.randn(output.shape, generator=generator)
    logits = output.detach().float() / temperature
    if kind == "categorical":
        share = logits.softmax(-1)
        noise = share.sqrt() * noise
        noise = (noise - share * noise.sum(-1, keepdim=True)) * 0.5**0.5
    elif kind == "binary":
        share = logits.sigmoid()
        noise = noise * (share * (1 - share) / 2).sqrt()
    return (noise * output.float()).sum() / len(output) ** 0.5


def _agreement(students, teachers, kind):
    pairs = list(zip(students, teachers, strict=True))
    if kind == "categorical":
        return sum(float((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs) / sum(map(len, teachers))
    if kind == "binary":
        agreeing = (((one > 0) == (other > 0)).float().mean(-1).sum() for one, other in pairs)
        return sum(map(float, agreeing)) / sum(map(len, teachers))
    error = sum(float((one - other).square().sum()) for one, other in pairs)
    squares = sum(float(other.double().square().sum()) for other in teachers)
    total = sum(other.double().sum(0) for other in teachers)
    variance = squares - float(total.square().sum()) / sum(map(len, teachers))
    return None if variance <= 1e-12 * squares else max(0.0, 1 - error / variance)


def _outputs(dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [(3 * torch.randn(rows, 7, generator=generator)).to(dtype) for rows in (9, 9, 4, 4)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("kind", KINDS)
def test_distance_and_probe_are_bit_equal(kind, temperature, dtype):
    student, teacher = _outputs(dtype)[:2]
    expected = _distance(student, teacher, temperature, kind)
    assert torch.equal(output_distance(student, teacher, temperature, KINDS[kind]), expected)
    streams = [torch.Generator().manual_seed(1) for _ in range(2)]
    slopes = []
    for probe, its_kind, stream in zip((_probe, probe_output), (kind, KINDS[kind]), streams, strict=True):
        values = teacher.clone().requires_grad_()
        functional = probe(values, temperature, its_kind, stream)
        slopes.append((functional.detach(), *torch.autograd.grad(functional, values)))
    assert all(torch.equal(one, other) for one, other in zip(*slopes, strict=True))
    assert torch.equal(*(torch.rand(3, generator=stream) for stream in streams)), "as many numbers were drawn"


@pytest.mark.parametrize("kind", KINDS)
def test_agreement_is_bit_equal(kind):
    one, other, third, fourth = _outputs(torch.float32)
    teachers, students = (other, fourth), (other + 0.3 * one, fourth + 0.3 * third)
    sums = _Sums()
    for student, teacher in zip(students, teachers, strict=True):
        sums.add(student, teacher, KINDS[kind])
    assert sums.agreement() == _agreement(students, teachers, kind)
    assert 0 < sums.agreement() < 1


class Clipped:
    """Numbers of which only those within reach count."""

    def distance(self, student, teacher, temperature):
        return (student - teacher).clamp(-1, 1).square().sum(-1).mean()

    def shaped(self, noise, output, temperature):
        return noise

    def sums(self, student, teacher):
        return (((student - teacher).abs() < 1).all(-1).sum().double(),)

    def agreement(self, rows, sums):
        return float(sums[0]) / rows


@pytest.mark.parametrize("scorer", ["surgeon", "gauss_newton", "exact"])
def test_a_new_output_is_one_class_and_what_reads_it(scorer, monkeypatch):
    kind, read = Clipped(), []

    def read_logits(found, model, batch, rows):
        read.append(rows)
        return Output(found["logits"], kind)

    pruner = OptinPruner(tiny_model())
    config = OptinConfig(flops=0.6, probes=8, scorer=scorer)
    pruner.prune(tiny_samples(), config)
    before = pruner.report.divergence["distance"]
    monkeypatch.setattr(outputs, "_READERS", (read_logits, *outputs._READERS))
    pruner.prune(tiny_samples(), config)
    assert read
    assert pruner.report.divergence["distance"] != before
    assert 0 <= pruner.report.divergence["agreement"] <= 1
