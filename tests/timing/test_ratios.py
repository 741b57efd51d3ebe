"""Ratios of runs whose times are known."""

import time

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch._inductor.exc import InvalidCxxCompiler

from optimum_optin.timing import ratios, side_by_side
from optimum_optin.timing.backends import check_backend, runner


class _Clock:
    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def run(self, times):
        place = iter(times)

        def wait():
            self.now += next(place)

        return wait


def test_the_slower_run_takes_longer():
    found = ratios.ratio_of(lambda: time.sleep(0.02), lambda: time.sleep(0.01))
    assert 1.4 < found.value < 2.2 and found.seconds > 0.02 and 0.01 < found.base_seconds < 0.02


def test_turns_go_on_while_ratios_vary(monkeypatch):
    clock = _Clock()
    monkeypatch.setattr(side_by_side, "time", clock)
    found = ratios.ratio_of(clock.run([3.0] * 99), clock.run([2.0] * 99))
    assert (found.value, found.error, found.turns) == (1.5, 0.0, 6)
    found = ratios.ratio_of(clock.run([1.0, 2.0, 3.0] * 99), clock.run([2.0] * 99))
    assert found.value == 1.0 and found.turns == 24, "four rounds of six"
    assert found.error == pytest.approx((1.5 - 0.5) / (2 * 1.96)), "of 24 ratios, the 7th and the 18th bound the median"


@pytest.mark.parametrize(
    ("seconds", "turns"), [(2.0, 6), (0.065, 6), (0.055, 7), (0.02, 20), (0.011, 36), (0.009, 40), (0.0, 40)]
)
def test_a_round_takes_four_tenths_of_a_second_in_6_to_40_turns(seconds, turns, monkeypatch):
    clock, ran = _Clock(), []
    monkeypatch.setattr(side_by_side, "time", clock)

    def run(name, took):
        ran.append(name)
        clock.now += took

    found = ratios.ratio_of(lambda: run("cut", 0.5), lambda: run("dense", seconds or 1e-12))
    assert found.turns == turns
    assert (found.seconds, found.base_seconds) == pytest.approx((0.5, seconds), abs=1e-9)
    assert ran.count("cut") == 1 + turns, "one pass warms it up"
    assert ran.count("dense") == side_by_side.WARM_UP + 1 + 1 + turns


@pytest.mark.parametrize(("off", "rounds"), [(0.003, 1), (0.019, 1), (0.021, 4), (0.03, 4)])
def test_turns_go_on_while_the_error_is_above_a_hundredth(off, rounds, monkeypatch):
    """Bounds of six ratios are the least and the most, which are 1.96 errors off the median each."""
    clock = _Clock()
    monkeypatch.setattr(side_by_side, "time", clock)
    found = ratios.ratio_of(clock.run([1.0, *[1.0 - off, 1.0 + off] * 99]), clock.run([1.0] * 99))
    assert found.turns == 6 * rounds
    assert found.error == pytest.approx(off / 1.96, rel=0.05)
    assert (found.value, found.seconds, found.base_seconds) == pytest.approx((1, 1, 1))


def test_a_compiler_that_is_missing_is_named(monkeypatch):
    def missing(function):
        raise InvalidCxxCompiler

    monkeypatch.setattr(torch, "compile", missing)
    check_backend("eager", torch.device("cpu"))
    with pytest.raises(ValueError, match=r"latency_backend='compile' does not work here .*takes a C\+\+ compiler"):
        check_backend("compile", torch.device("cpu"))


def test_a_compiled_model_runs(monkeypatch):
    model = tiny_model().eval()
    compiled = []
    monkeypatch.setattr(model, "compile", lambda **options: compiled.append(options))
    with torch.no_grad():
        runner(model, tiny_batch(model), "compile")()
    assert compiled == [{"dynamic": False}]


def test_an_onnx_session_runs_one_sample():
    pytest.importorskip("onnxruntime")
    model = tiny_model(num_hidden_layers=1).eval()
    batch = {name: value[:1] for name, value in tiny_batch(model).items()}
    check_backend("onnx", torch.device("cpu"))
    with torch.no_grad():
        found = runner(model, batch, "onnx")()
        assert torch.allclose(found["logits"], model(**batch).logits, atol=1e-5)
