"""Runs that were killed go on where they were, and end as if nothing had happened, to the last bit."""

import errno
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest
import torch
from runs import CASES, prepared
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, Scores, register_scorer
from optimum_optin.files import locks
from optimum_optin.running import processes
from optimum_optin.scoring import registry, surgeon
from optimum_optin.stages import resuming
from optimum_optin.stages.resuming import Outcome, once, resumed
from optimum_optin.stages.tensor_files import write_tensors
from optimum_optin.stages.work_folder import working_in

HERE = Path(__file__).parent
CONFIG = OptinConfig(flops=0.5, probes=8)


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Work folders that killed runs left: case -> kind -> moment -> folder; see `killed.py`."""
    folder = tmp_path_factory.mktemp("killed")
    paths = [HERE, HERE.parent, HERE.parents[1]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, "killed.py", str(folder)]
    done = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return {case: {kind.name: _moments(kind) for kind in (folder / case).iterdir()} for case in CASES}


def _moments(kind):
    return {int(moment.name): moment for moment in sorted(kind.iterdir(), key=lambda moment: int(moment.name))}


def _assert_same(scores, expected):
    for one, other in ((scores.terms, expected.terms), (scores.merges, expected.merges)):
        assert one.keys() == other.keys()
        for term, by_key in other.items():
            assert one[term].keys() == by_key.keys()
            assert all(torch.equal(one[term][key], score) for key, score in by_key.items())
    starts, wanted = (each.calibration and each.calibration.starts for each in (scores, expected))
    assert (starts is None) == (wanted is None)
    for start, other in zip(starts or (), wanted or (), strict=True):
        assert start.seed == other.seed and start.weights.keys() == other.weights.keys()
        assert all(torch.equal(start.weights[path], weight) for path, weight in other.weights.items())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="a process is forked for every kill")
@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_goes_on_and_ends_bit_equal(case, killed):
    model, run = prepared(case)
    passes = []
    model.register_forward_hook(lambda *_: passes.append(1))
    expected = run(None)
    whole = len(passes)
    for kind, moments in killed[case].items():
        assert len(moments) > 1
        for moment, folder in moments.items():
            passes.clear()
            scores = run(folder)
            _assert_same(scores, expected)
            assert list(scores.terms) == list(expected.terms)  # in which they are added up
            if kind == "pass":  # the pass that it was killed in is run again, and a few of the dense model
                assert len(passes) <= max(whole - moment, 0) + 4
            _assert_same(Scores.from_pretrained(folder / "optin_scores"), replace(expected, calibration=None))
            assert not list(folder.rglob("*.part"))
            passes.clear()
            _assert_same(run(folder), expected)
            assert len(passes) <= (case == "merges")  # of which one tells whether there is a head


@pytest.fixture
def each_step(monkeypatch):
    """Every step is kept."""
    monkeypatch.setattr(resuming, "EVERY", 0)
    monkeypatch.setattr(resuming, "SHARE", 0)


class _StoppedError(Exception):
    pass


@register_scorer("stopping")
def _score_stopping(model, groups, calibration, config):
    """The surgeon's scores, stopped after three probes."""
    passes = []

    def count(*_):
        passes.append(1)
        if len(passes) == 4:
            raise _StoppedError

    handle = model.register_forward_hook(count)
    try:
        return surgeon.score_surgeon(model, groups, calibration, config)
    finally:
        handle.remove()


def _stop(work, **changes):
    """A pruner whose scoring was stopped, with a work folder."""
    pruner = OptinPruner(tiny_model())
    with mock.patch.dict(registry._SCORERS, {"surgeon": registry._SCORERS["stopping"]}), pytest.raises(_StoppedError):
        pruner.score(tiny_samples(32), replace(CONFIG, **changes), work_dir=work)
    return pruner


@pytest.mark.usefixtures("each_step")
def test_a_pruning_that_goes_on_gives_the_same_model_and_report(tmp_path):
    _stop(tmp_path)
    assert list(tmp_path.rglob("probes.0.safetensors"))
    pruner, other = OptinPruner(tiny_model()), OptinPruner(tiny_model())
    model = pruner.prune(tiny_samples(32), CONFIG, work_dir=tmp_path)
    expected = other.prune(tiny_samples(32), CONFIG)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in expected.state_dict().items())
    timed = {"seconds": {}}
    assert {**pruner.report.to_dict(), **timed} == {**other.report.to_dict(), **timed}
    # What was scored serves any other budget.
    smaller = pruner.prune(tiny_samples(32), replace(CONFIG, flops=0.3), work_dir=tmp_path)
    expected = other.prune(tiny_samples(32), replace(CONFIG, flops=0.3))
    assert all(torch.equal(value, smaller.state_dict()[name]) for name, value in expected.state_dict().items())


def _one_weight():
    model = tiny_model()
    with torch.no_grad():
        model.bert.encoder.layer[0].output.dense.weight[3, 5] += 1e-6
    return model


def _another_config():
    model = tiny_model()
    model.config.layer_norm_eps = 1e-3
    return model


REFUSED = {
    "a single weight": (r"model is '.{12}\.\.\.' there", lambda: {"model": _one_weight()}),
    "config": (r"model's config is '.{12}\.\.\.' there", lambda: {"model": _another_config()}),
    "attention": ("model's config is", lambda: {"model": tiny_model(attn_implementation="eager")}),
    "model": (r"model is '.{12}\.\.\.' there", lambda: {"model": tiny_model(seed=1)}),
    "dtype": ("dtype is 'float32' there, 'bfloat16' here", lambda: {"model": tiny_model().bfloat16()}),
    "data": ("calibration data is '", lambda: {"data": tiny_samples(32, seed=1)}),
    "fewer data": ("calibration data is '", lambda: {"data": tiny_samples(31)}),
    "seed": (r"seed is 0 there, 7 here", lambda: {"config": replace(CONFIG, seed=7)}),
    "scorer": ("scorer is 'surgeon' there, 'exact' here", lambda: {"config": replace(CONFIG, scorer="exact")}),
    "probes": ("probes is 8 there, 9 here", lambda: {"config": replace(CONFIG, probes=9)}),
    "temperature": ("temperature is 1.0 there, 2.0 here", lambda: {"config": replace(CONFIG, temperature=2.0)}),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A work folder of a run that was stopped."""
    folder = tmp_path_factory.mktemp("begun")
    with mock.patch.object(resuming, "EVERY", 0):
        _stop(folder)
    return folder


@pytest.mark.parametrize("other", REFUSED)
def test_another_runs_work_is_refused_by_what_differs(other, begun):
    message, changes = REFUSED[other]
    given = {"model": tiny_model(), "data": tiny_samples(32), "config": CONFIG, **changes()}
    before = {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=message) as caught:
        OptinPruner(given["model"]).score(given["data"], given["config"], work_dir=begun)
    assert str(begun) in str(caught.value) and "Give another work_dir, or delete this one" in str(caught.value)
    assert {file: file.read_bytes() for file in begun.rglob("*") if file.is_file()} == before


def test_another_number_of_processes_is_refused(begun, monkeypatch):
    file = begun / "optin_work.json"
    text = file.read_text()
    try:
        file.write_text(json.dumps({**json.loads(text), "number of processes": 4}))
        with pytest.raises(ValueError, match="number of processes is 4 there, 1 here"):
            OptinPruner(tiny_model()).score(tiny_samples(32), CONFIG, work_dir=begun)
    finally:
        file.write_text(text)


def _flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1  # in the last tensor
    file.write_bytes(content)


def _renote(file):
    file.write_bytes(file.read_bytes().replace(b'"done":"3"', b'"done":"2"'))


DAMAGED = {
    "one bit": _flip,
    "another count": _renote,
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:1000]),
    "empty": lambda file: file.write_bytes(b""),
    "no safetensors": lambda file: file.write_bytes(b"\x80" * 5000),
    "of other shapes": lambda file: write_tensors(file, {"traces/output": torch.ones(3)}, {"done": 1, "of": 4}),
    "of another length": lambda file: write_tensors(file, {}, {"done": 1, "of": 99}),
    "with no count": lambda file: write_tensors(file, {}, {}),
}


@pytest.mark.usefixtures("each_step")
@pytest.mark.parametrize("damage", DAMAGED)
def test_damaged_work_is_named_and_done_again_once_it_is_deleted(damage, tmp_path):
    pruner = _stop(tmp_path)
    (file,) = tmp_path.rglob("probes.0.safetensors")
    DAMAGED[damage](file)
    with pytest.raises(ValueError, match=f"(?i){re.escape(str(file))}.*delete it"):
        pruner.score(tiny_samples(32), CONFIG, work_dir=tmp_path)
    if damage == "empty":
        file.unlink()
        _assert_same(pruner.score(tiny_samples(32), CONFIG, work_dir=tmp_path), pruner.score(tiny_samples(32), CONFIG))


def test_a_damaged_identity_is_named(tmp_path):
    (tmp_path / "optin_work.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"optin_work\.json is damaged"):
        OptinPruner(tiny_model()).score(tiny_samples(32), CONFIG, work_dir=tmp_path)


def test_one_run_at_a_time(tmp_path):
    with working_in(tmp_path, {}), pytest.raises(BlockingIOError, match="another run is working in"):
        OptinPruner(tiny_model()).score(tiny_samples(32), CONFIG, work_dir=tmp_path)
    with working_in(tmp_path, {}):
        pass


def test_a_work_folder_that_cannot_be_is_refused_before_the_first_pass(tmp_path):
    (tmp_path / "file").write_text("")
    model = tiny_model()
    model.register_forward_hook(lambda *_: pytest.fail("a pass was run"))
    for call in (OptinPruner(model).score, OptinPruner(model).prune):
        with pytest.raises(NotADirectoryError, match="file"):
            call(tiny_samples(32), CONFIG, work_dir=tmp_path / "file")


def test_scores_and_a_work_folder_are_one_too_many(tmp_path):
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(32), CONFIG)
    with pytest.raises(ValueError, match="work_dir= is for scoring"):
        pruner.prune(scores=scores, work_dir=tmp_path)


@pytest.mark.usefixtures("each_step")
def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(resuming, "write_tensors", fail)
    pruner = OptinPruner(tiny_model())
    _assert_same(pruner.score(tiny_samples(32), CONFIG, work_dir=tmp_path), pruner.score(tiny_samples(32), CONFIG))
    assert not list(tmp_path.rglob("*.safetensors.part"))


def test_stages_of_one_name_are_told_apart(tmp_path):
    """A scorer may call ours twice."""
    with working_in(tmp_path, {}):
        first = [once("stage", lambda value=value: Outcome({"x": torch.tensor(value)})) for value in (1, 2)]
    with working_in(tmp_path, {}):
        again = [once("stage", lambda: pytest.fail("computed again")) for _ in first]
    assert [int(each.common["x"]) for each in again] == [1, 2]


class _Sum:
    def __init__(self):
        self.value = torch.zeros(())

    def tensors(self):
        return {"value": self.value}

    def restore(self, saved):
        self.value = saved["value"]


def test_it_is_kept_every_minute_or_less_often_if_writing_takes_long(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])

    def write(file, tensors, notes):
        written.append(notes["done"])
        now[0] += 10.0

    monkeypatch.setattr(resuming, "write_tensors", write)
    with working_in(tmp_path, {}):
        for _ in resumed(range(60), "", "", name="loop", sums=_Sum()):
            now[0] += 7.0
    assert written == [9, 38, 60]  # after 63 s; after 20 times the 10 s that it took; at the end


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    OptinPruner(tiny_model()).score(tiny_samples(32), CONFIG)
    assert not list(tmp_path.iterdir())


def test_a_finished_stage_of_which_a_file_is_gone_is_done_again(tmp_path):
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(32), CONFIG, work_dir=tmp_path)
    (tmp_path / "scores.own0.safetensors").unlink()
    _assert_same(pruner.score(tiny_samples(32), CONFIG, work_dir=tmp_path), scores)
    assert (tmp_path / "scores.own0.safetensors").exists()


def test_what_stops_one_process_stops_all(monkeypatch):
    def fail():
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        processes.together(fail)
    assert processes.together(lambda: 3) == 3
    monkeypatch.setattr(processes, "first_of_all", lambda value: "the disk is full")  # of another process
    with pytest.raises(ValueError, match="another process stopped: the disk is full"):
        processes.together(lambda: 3)


@pytest.mark.parametrize("system", ["without locks", "a file system without locks"])
def test_where_there_are_no_locks_work_goes_on_all_the_same(system, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    system_locks = None if system == "without locks" else mock.Mock(flock=fail, LOCK_EX=1, LOCK_NB=2)
    monkeypatch.setattr(locks, "fcntl", system_locks)
    with working_in(tmp_path, {"seed": 0}), working_in(tmp_path, {"seed": 0}):
        pass
    with pytest.raises(ValueError, match="seed is 0 there, nothing here"), working_in(tmp_path, {}):
        pass
