"""The benchmark of budgets of latency: both of its models take as long, and are timed where the budget says."""

import json
import sys
from pathlib import Path
from unittest.mock import create_autospec

import pytest
from tiny import tiny_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinPruner
from optimum_optin.programs.onnx_files import OnnxSession
from optimum_optin.timing.side_by_side import WARM_UP

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import latency_budgets
import tasks


def test_both_models_take_the_time_that_was_asked_for(clock_of, monkeypatch, tmp_path, capsys):
    pytest.importorskip("onnxruntime")
    clock, measured, compared = clock_of(), [], []
    task = tasks.Task(
        OptinPruner(tiny_model(num_hidden_layers=2), word_tokenizer()),
        TEXTS,
        "size",
        None,
        {"test": lambda model: measured.append(model) or 50},
        None,
    )
    monkeypatch.setattr(latency_budgets, "load_task", create_autospec(tasks.load_task, return_value=task))
    monkeypatch.setattr(latency_budgets, "HALVINGS", 4)
    monkeypatch.setattr(latency_budgets, "runner", clock.runner)
    monkeypatch.setattr(latency_budgets, "onnx_distance", lambda model, tokens: compared.append(model) or 0.25)
    options = "--latency 0.8 --batch-size 2 --backend onnx --samples 8 --repeats 6 --seeds 3"
    file = tmp_path / "lines"
    monkeypatch.setattr(sys, "argv", ["latency_budgets.py", "reactions", *options.split(), "--out", str(file)])
    latency_budgets.main()
    assert capsys.readouterr().out.splitlines() == ["dense {'test': 50}", file.read_text().strip()]
    line, (dense, *models) = json.loads(file.read_text()), measured
    assert (line["seed"], line["backend"], line["batch_size"]) == (3, "onnx", 2)
    assert dense is task.pruner.model and compared == models
    for found, model in zip((line["by latency"], line["by flops"]), models, strict=True):
        exactly = clock.seconds(model) / clock.dense
        assert found["share of the time"] == pytest.approx(exactly, abs=1e-4)
        assert found["between"] == [found["share of the time"]] * 2
        assert exactly == pytest.approx(0.8, rel=0.05) and found["test"] == 50
        assert found["off"] == 0.25


def test_both_models_are_timed_in_onnx_runtime(monkeypatch):
    pytest.importorskip("onnxruntime")
    ran = []
    call = OnnxSession.__call__
    monkeypatch.setattr(OnnxSession, "__call__", lambda self, batch: ran.append(self) or call(self, batch))
    model = tiny_model(num_hidden_layers=1)
    clock = latency_budgets.Clock(model, 7, batch_size=1, backend="onnx", repeats=6)
    assert {value.shape[:2] for value in clock.batch.values()} == {(1, 7)}
    share, milliseconds = clock.time(tiny_model(num_hidden_layers=1), rounds=2)
    assert ran == [ran[0], ran[1]] * (WARM_UP + 12) and ran[0] is not ran[1]
    assert share.runs == 12 and milliseconds > 0


def test_the_distance_of_an_export_is_told(monkeypatch):
    pytest.importorskip("onnxruntime")
    call = OnnxSession.__call__
    monkeypatch.setattr(OnnxSession, "__call__", lambda *given: {name: 2 * each for name, each in call(*given).items()})
    assert latency_budgets.onnx_distance(tiny_model(num_hidden_layers=1), 7) == pytest.approx(1, abs=1e-5)
