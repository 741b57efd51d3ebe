"""Timetables in memory and on disk: which are measured, which are kept, and for what; nothing is timed."""

import copy
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from tiny import tiny_model

from optimum_optin import OptinConfig, find_groups
from optimum_optin.pricing import timetables
from optimum_optin.pricing.stairs import Stairs
from optimum_optin.pricing.timetable import Timetable
from optimum_optin.pricing.timetables import timed_batch, timetable_of

CONFIG = OptinConfig(latency=0.5)


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """What was asked to be measured; each timetable is another one, with the noise that `measured.noise` says."""
    asked = Asked()

    def measure(model, groups, tokens, batch, backend):
        asked.append((tokens, {name: tuple(value.shape) for name, value in batch.items()}, backend))
        return Timetable(float(len(asked)), (Stairs(("a",), (0, 1), (0.0, 0.5)),), 0.0, 1, asked.noise)

    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home" / "of its own"))
    monkeypatch.setattr(timetables, "measure", measure)
    return asked


class Asked(list):
    """What was asked, and how much the answers vary."""

    noise = 0.0


def _found(model=None, config=CONFIG, tokens=9):
    model = tiny_model() if model is None else model
    return timetable_of(model, find_groups(model), tokens, config)


def _files():
    return sorted((Path(constants.HF_HOME) / "optimum_optin" / "timetables").glob("*"))


def test_a_model_is_measured_once_in_memory_and_once_on_disk(measured):
    model = tiny_model()
    first = _found(model)
    assert _found(model) is first and len(measured) == 1
    again = _found(copy.deepcopy(model))
    assert again == first and again is not first and len(measured) == 1
    (file,) = _files()
    assert len(file.stem) == 64 and file.suffix == ".json" and file.read_text().endswith("\n")
    entry = json.loads(file.read_text())
    assert Timetable.from_dict(entry["timetable"]) == first
    assert entry["machine"]["torch"] == torch.__version__
    for latency in (0.4, "2ms"):
        assert _found(model, OptinConfig(latency=latency)) is first
    assert len(measured) == 1, "a timetable serves all budgets"


def test_other_batches_lengths_backends_and_shapes_have_files_of_their_own(measured, monkeypatch):
    monkeypatch.setattr(timetables, "check_backend", lambda *_: None)
    others = ({"latency_batch_size": 2}, {"latency_length": 12}, {"latency_backend": "onnx"})
    _found()
    for number, other in enumerate(others, start=2):
        _found(config=OptinConfig(latency=0.5, **other))
        assert len(measured) == len(_files()) == number
    _found(tiny_model("bert", intermediate_size=40))
    _found(tiny_model("bert", num_labels=7))
    assert len(measured) == len(_files()) == 6
    assert [(tokens, shapes["input_ids"], backend) for tokens, shapes, backend in measured] == [
        (9, (1, 9), "eager"),
        (9, (2, 9), "eager"),
        (9, (1, 12), "eager"),
        (9, (1, 9), "onnx"),
        (9, (1, 9), "eager"),
        (9, (1, 9), "eager"),
    ]


def test_the_batch_is_of_the_mean_length_or_the_configured_one():
    model = tiny_model()
    for fields, shape in (
        ({}, (1, 7)),
        ({"latency_length": 5}, (1, 5)),
        ({"latency_batch_size": 3}, (3, 7)),
        ({"latency_batch_size": 3, "latency_length": 5}, (3, 5)),
    ):
        assert timed_batch(model, 7, OptinConfig(latency=0.5, **fields))["input_ids"].shape == shape


def test_a_backend_that_cannot_run_is_told_first(measured, monkeypatch):
    def refuse(backend, device):
        raise ValueError(f"{backend} is not installed")

    monkeypatch.setattr(timetables, "check_backend", refuse)
    with pytest.raises(ValueError, match="onnx is not installed"):
        _found(config=OptinConfig(latency=0.5, latency_backend="onnx"))
    assert not measured


@pytest.mark.parametrize("what", ["cpus", "attention_of"])
def test_what_is_of_another_machine_is_measured_again(measured, monkeypatch, caplog, what):
    first = _found()
    monkeypatch.setattr(timetables, what, lambda *_: "other")
    assert _found() != first and len(measured) == 2
    assert "of another machine or set-up (" in caplog.text and "now other): it is measured again" in caplog.text
    assert len(_files()) == 1
    caplog.clear()
    _found()
    assert len(measured) == 2 and not caplog.text


@pytest.mark.parametrize(
    "damage", ["{", "{}", "[]", '{"machine": {}, "timetable": 3}', "no units", "no shares", "one share too few"]
)
def test_what_cannot_be_read_is_measured_again(measured, caplog, damage):
    _found()
    (file,) = _files()
    entry = json.loads(file.read_text())
    if damage.startswith(("no ", "one ")):
        stairs = entry["timetable"]["stairs"][0]
        stairs["shares" if "share" in damage else "units"] = [0.0] if "one" in damage else []
        damage = json.dumps(entry)
    file.write_text(damage)
    assert _found().seconds == 2.0
    assert "cannot be read" in caplog.text and "it is measured again" in caplog.text
    assert _found().seconds == 2.0 and len(measured) == 2


@pytest.mark.parametrize(("varies", "told", "kept"), [(0.029, False, True), (0.031, True, False), (0.199, True, False)])
def test_what_varies_is_told_and_not_kept(measured, caplog, varies, told, kept):
    measured.noise = varies
    assert _found().noise == varies
    assert ("times on this machine vary by ±" in caplog.text) == told
    assert len(_files()) == kept
    _found()
    assert len(measured) == (1 if kept else 2)


def test_what_varies_too_much_is_refused(measured):
    measured.noise = 0.201
    with pytest.raises(ValueError, match=r"vary too much to keep a budget of latency: by ±20% .*OMP_NUM_THREADS"):
        _found()
    assert not _files()


def test_a_folder_that_cannot_be_written_is_no_reason_to_stop(measured, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "file"))
    assert _found().seconds == 1.0
    assert "the timetable could not be kept in " in caplog.text
