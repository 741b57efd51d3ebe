"""`OptinPruner.sweep` against `prune` at every budget, and what it measures, keeps, goes on from and refuses."""

import importlib
import json
import math
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from unittest import mock

import pytest
import torch
from tiny import tiny_model, tiny_samples
from transformers import AutoModelForSequenceClassification
from tsv import write_sst2
from words import TEXTS, word_tokenizer

from optimum_optin import NotSavedError, OptinConfig, OptinPruner, PruningReport, Sweep, find_groups
from optimum_optin.commands import run
from optimum_optin.config import BUDGETS as FIELDS
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.stages import progress
from optimum_optin.sweeping import course, room, times
from optimum_optin.sweeping.picture import NotInstalledError, png

CONFIG = OptinConfig(probes=8)
BUDGETS = [0.8, {"params": 0.75}, 0.4]
NAMES = ["flops-0.8", "params-0.75", "flops-0.4"]


def _neurons(model):
    """How many neurons there are."""
    return float(sum(len(layer.intermediate.dense.weight) for layer in model.bert.encoder.layer))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A sweep, its folder, and the pruner that made it."""
    folder = tmp_path_factory.mktemp("sweep")
    pruner = OptinPruner(tiny_model(num_labels=2), word_tokenizer())
    evaluate = {"task": "glue/sst2", "data_dir": write_sst2(folder / "glue")}
    sweep = pruner.sweep(TEXTS, BUDGETS, CONFIG, evaluate=evaluate, save_dir=folder / "out", repeats=2)
    return sweep, folder, pruner


@pytest.fixture(autouse=True)
def drawn(monkeypatch):
    """Pictures are not drawn, which takes a second each, but for the first sweep."""
    monkeypatch.setattr("optimum_optin.sweeping.sweep.png", lambda _: b"\x89PNG")


@pytest.fixture(scope="module")
def scored():
    """A pruner and scores, with which a sweep begins at its budgets."""
    pruner = OptinPruner(tiny_model())
    return pruner, pruner.score(tiny_samples(16), replace(CONFIG, search="ranked"))


# What comes out


def test_models_are_those_that_prune_makes_of_each_budget(place):
    sweep, _, pruner = place
    assert [point.name for point in sweep.points] == NAMES
    for point in sweep.points:
        expected = pruner.prune(TEXTS, sweep.config_of(point), scores=pruner.scores)
        saved = AutoModelForSequenceClassification.from_pretrained(point.folder).state_dict()
        assert all(torch.equal(value, saved[name]) for name, value in expected.state_dict().items())
        made, report = pruner.report, PruningReport.load(point.folder)
        for name in ("macs_pruned", "params_pruned", "bytes_pruned", "layers", "divergence", "config"):
            assert getattr(report, name) == getattr(made, name), name
        assert (point.macs, point.params, point.bytes) == (made.macs_pruned, made.params_pruned, made.bytes_pruned)
        assert (point.flops, point.layers) == (made.flops_achieved, made.layers)
        assert (report.latency["pruned_ms"], report.latency["speedup"]) == (point.milliseconds, point.speedup)
    dense = sweep.dense
    assert (dense.macs, dense.params, dense.bytes) == (made.macs_dense, made.params_dense, made.bytes_dense)
    assert {each["kept"] for roles in dense.layers.values() for each in roles.values()} == {4, 48}


def test_what_is_measured_is_what_evaluating_the_saved_models_gives(place):
    sweep, folder, pruner = place
    for model, point in [(pruner.model, sweep.dense)] + [
        (AutoModelForSequenceClassification.from_pretrained(point.folder), point) for point in sweep.points
    ]:
        found = evaluate_model(model, pruner.processor, "glue/sst2", data_dir=folder / "glue")
        assert point.metrics == found["metrics"]
    assert sweep.task == {name: found[name] for name in ("task", "dataset", "config", "split", "samples")}
    entry = PruningReport.load(sweep.points[0].folder).evaluations[0].metrics["accuracy"]
    assert (entry.dense, entry.pruned) == (sweep.value(sweep.dense), sweep.value(sweep.points[0]))


def test_what_is_saved_is_read_again_and_says_it_all(place):
    sweep, folder, _ = place
    assert Sweep.load(folder / "out") == sweep
    text = str(sweep)
    assert "accuracy of glue/sst2, validation, 24 samples" in text and "median of 2 runs in turn" in text
    for name in ("dense", "flops=0.8", "params=0.75"):
        assert f"\n{name} " in text
    file = folder / "out/optin_sweep.json"
    content = json.loads(file.read_text())
    for change in ({"points": [{}]}, {"metric": "f1"}, {"timing": {}}, {"dense": {**content["dense"], "macs": -1}}):
        other = file.parent / "damaged"
        other.mkdir(exist_ok=True)
        (other / file.name).write_text(json.dumps({**content, **change}))
        with pytest.raises(ValueError, match="optin_sweep.json is damaged, or of a newer version"):
            Sweep.load(other)


def test_budgets_share_the_passes_of_the_dense_model_and_walks_change_nothing(scored, monkeypatch):
    """Of several models in a walk, the dense one goes through the data once, as for one."""
    pruner, scores = scored
    walks = []
    walk = importlib.import_module("optimum_optin.compensation.refit")
    monkeypatch.setattr(walk, "Walk", lambda *given, make=walk.Walk: walks.append(1) or make(*given))

    def walked(budgets):
        walks.clear()
        return pruner.sweep(budgets=budgets, scores=scores, repeats=0), len(walks)

    together, passes = walked(BUDGETS[1:])
    assert passes == 1  # of two batches, one is held out
    monkeypatch.setattr(room, "MOST", 1)
    assert walked(BUDGETS[1:]) == (together, 2)


def test_all_models_take_turns_with_the_dense_one(scored, monkeypatch):
    seen = []
    monkeypatch.setattr(
        times, "run_once", lambda model, batch: seen.append((_neurons(model), batch["input_ids"].shape))
    )
    pruner, scores = scored
    given = {"evaluate": _neurons, "repeats": 3, "batch_size": 2, "tokens": 7}
    sweep = pruner.sweep(budgets=[0.7, 0.4], scores=scores, **given)
    turn = [sweep.value(point) for point in (sweep.dense, *sweep.points)]
    assert seen == [(value, (2, 7)) for value in turn] * 5  # two of which warm up
    assert (sweep.timing.batch_size, sweep.timing.tokens, sweep.timing.repeats) == (2, 7, 3)
    assert turn[0] == 144 and turn == sorted(set(turn), reverse=True)


def test_what_does_not_fit_into_memory_together_is_timed_and_pruned_in_parts(scored, monkeypatch):
    model = scored[0].model
    size = sum(each.nbytes for each in model.parameters())
    assert room.parts_that_fit(model, [2**31, 2**31, 1, 2**33, 5]) == [[0, 1], [2], [3], [4]]
    monkeypatch.setattr(room, "_LEAST", 0)
    assert room.parts_that_fit(model, [size] * 7) == [[0, 1, 2], [3, 4, 5], [6]]
    groups, calibration = find_groups(model), scored[1].calibration
    assert room.models_at_once(model, groups, calibration, refits=False) == 3
    assert room.models_at_once(model, groups, calibration, refits=True) in (1, 2)  # what passes hold counts


def test_a_budget_of_time_may_be_among_them_and_its_report_keeps_what_it_was_timed_with(
    clock_of, tmp_path, monkeypatch
):
    clock = clock_of()
    monkeypatch.setattr(times, "run_once", lambda model, batch: clock.runner(model, batch, "eager")())
    pruner = OptinPruner(tiny_model(intermediate_size=256))
    config = replace(CONFIG, search="ranked", latency_batch_size=4)
    given = {"evaluate": clock.seconds, "save_dir": tmp_path, "repeats": 1, "batch_size": 2}
    sweep = pruner.sweep(tiny_samples(16), [{"latency": 0.7}, 0.9], config, **given)
    took = sweep.value(sweep.points[0]) / sweep.value(sweep.dense)
    assert 0.66 < took < 0.722
    reports = [PruningReport.load(point.folder) for point in sweep.points]
    assert reports[0].latency.speedup == pytest.approx(1 / took)
    assert [report.latency.batch_size for report in reports] == [4, 2]
    assert [point.speedup for point in sweep.points] == pytest.approx([1 / took, reports[1].latency.speedup])


# The smallest that holds


def _with_values(sweep, values, **changes):
    points = [
        replace(point, metrics={"m": {"value": value, "error": None}}, macs=macs, params=100 - macs)
        for point, (value, macs) in zip((sweep.dense, *sweep.points), values, strict=True)
    ]
    return replace(sweep, dense=points[0], points=points[1:], metric="m", **{"lower": False, **changes})


@pytest.mark.parametrize(
    ("values", "changes", "drops"),
    [
        ((0.9, 0.88, 0.85, 0.4), {}, (0.02, 0.05, 0.5)),
        ((20.0, 20.4, 21.0, None), {"lower": True, "relative": True}, (0.02, 0.05, math.nan)),
        ((0.0, 0.02, 0.05, 0.5), {"lower": True}, (0.02, 0.05, 0.5)),
    ],
)
def test_the_smallest_loses_no_more_than_it_may(place, values, changes, drops):
    sweep = _with_values(place[0], zip(values, (90, 70, 50, 30), strict=True), **changes)
    assert [sweep.drop(point) for point in sweep.points] == pytest.approx(drops, nan_ok=True)
    assert sweep.smallest(0.06).macs == 50 and sweep.smallest(0.03).macs == 70
    assert sweep.smallest(0.06, by="params").macs == 70
    with pytest.raises(ValueError, match=r"max_drop=0.01 is met by no budget .* drops by 0\.02 at flops-0\.8"):
        sweep.smallest(0.01)
    with pytest.raises(ValueError, match="by='size' must be one of macs"):
        sweep.smallest(0.1, by="size")
    assert Sweep.from_dict(json.loads(json.dumps(sweep.to_dict()))) == sweep


def test_the_one_that_is_taken_is_the_pruners_and_the_only_one_saved(scored, tmp_path):
    pruner, scores = scored
    given = {"scores": scores, "evaluate": _neurons, "save_dir": tmp_path, "repeats": 0}
    sweep = pruner.sweep(budgets=[0.9, 0.7, 0.3], max_drop=60, **given)
    chosen = sweep.smallest(60)
    assert chosen.name == "flops-0.7" and chosen.folder == str(tmp_path / "flops-0.7")
    assert sorted(each.name for each in tmp_path.iterdir() if each.is_dir()) == ["flops-0.7"]
    assert _neurons(pruner.pruned_model) == sweep.value(chosen) and pruner.report.layers == chosen.layers
    with mock.patch("optimum_optin.sweeping.saving.logger.warning") as warned:
        pruner.sweep(budgets=[0.3], max_drop=1, **given)
    assert "no model is taken: max_drop=1 is met by no budget" in warned.call_args[0][0]
    assert pruner.pruned_model is None


# Going on


class _KilledError(Exception):
    pass


def test_a_killed_sweep_goes_on_and_does_only_what_is_left(scored, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "MOST", 1)
    (pruner, scores), budgets = scored, [0.9, 0.5, 0.3]
    expected = pruner.sweep(budgets=budgets, scores=scores, evaluate=_neurons, repeats=0)
    cut, measured, prune = [], [], course.prune_models

    def prune_or_die(*given):
        cut.extend(config.flops for config in given[-1])
        if len(cut) == 2:
            raise _KilledError
        return prune(*given)

    def neurons_or_die(model):
        measured.append(1)
        if len(measured) == 3:
            raise _KilledError
        return _neurons(model)

    for name in ("__module__", "__qualname__", "__name__"):
        setattr(neurons_or_die, name, getattr(_neurons, name))
    monkeypatch.setattr(course, "prune_models", prune_or_die)
    given = {"scores": scores, "evaluate": neurons_or_die, "work_dir": tmp_path, "repeats": 0}
    for _ in range(2):  # in the second walk, and when the second model is measured
        with pytest.raises(_KilledError):
            pruner.sweep(budgets=budgets, **given)
    found = pruner.sweep(budgets=budgets, **given)
    assert cut == [0.9, 0.5, 0.5, 0.3]
    assert len(measured) == 1 + 2 + 2  # the dense model, another and one that was cut off, and what was left
    assert found == expected
    cut.clear()
    again = pruner.sweep(budgets=[0.3, 0.9], **given)
    assert not cut and again.points == expected.points[::-2]
    for changes, message in (
        ({"config": replace(scores.config, compensation="none")}, "compensation is 'ridge' there, 'none' here"),
        ({"evaluate": "agreement"}, "evaluate is '.*' there, 'agreement' here"),
    ):
        with pytest.raises(ValueError, match=f"(?s)holds another run's work: .*{message}"):
            pruner.sweep(budgets=budgets, **{**given, **changes})
    (tmp_path / "sweep/flops-0.5.json").write_text('{"metrics": 3}')
    with pytest.raises(ValueError, match=r"flops-0\.5\.json is damaged .* that model is measured again"):
        pruner.sweep(budgets=budgets, **given)


def test_the_bar_knows_of_the_walks_and_never_goes_back(scored, monkeypatch):
    monkeypatch.setattr(room, "MOST", 1)
    places, move = [], progress._Run.move

    def moved(run, *given, **options):
        move(run, *given, **options)
        places.append(run.at)

    with mock.patch.object(progress._Run, "move", moved):
        scored[0].sweep(budgets=[0.9, 0.5], scores=scored[1], repeats=1)
    assert places == sorted(places) and places[0] == 0 and places[-1] == pytest.approx(1)
    assert max(after - before for before, after in pairwise(places)) < 0.25


# What makes no sense


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"budgets": []}, r"budgets=\[\] leaves nothing"),
        ({"budgets": [0.5, {"flops": 0.5}]}, "holds {'flops': 0.5} twice"),
        ({"budgets": ["50M", "50 M"]}, "holds '50 M' twice"),
        ({"budgets": [1.5]}, "flops=1.5 must be a share"),
        ({"budgets": [True]}, "flops=True must be a share"),
        ({"budgets": ["0.5"]}, "'0.5' must be a number with a unit that only one budget has"),
        ({"budgets": ["50 parrots"]}, "must be a number with a unit that only one budget has"),
        ({"budgets": [{"params": "50MB"}]}, "params='50MB' must be a share"),
        ({"budgets": [{"size": 0.5}]}, f"'size' is none; fields that are budgets are {', '.join(FIELDS)}"),
        ({"budgets": [{}]}, "{} names none"),
        ({"budgets": [0.9, 0.001]}, "flops: a budget of 0.001 of the dense cost is below the minimum"),
        ({"budgets": [0.9, "1K"]}, "params: a budget of .* is below the minimum"),
        ({"evaluate": "glue/sst3"}, "unknown task 'glue/sst3'"),
        ({"evaluate": {"split": "test"}}, "must name its task"),
        ({"evaluate": "perplexity"}, "evaluate='perplexity' is for models that predict the next token"),
        ({"max_drop": -1}, "max_drop=-1 must be a number of at least 0"),
        ({"repeats": -1}, "repeats=-1"),
        ({"tokens": 10_000}, "tokens=10000 must be at most"),
    ],
)
def test_what_makes_no_sense_is_refused_before_scoring(given, message, scored, monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    with pytest.raises(ValueError, match=message):
        scored[0].sweep(tiny_samples(16), config=CONFIG, **given)


@pytest.mark.parametrize("given", [{"budgets": 0.5}, {"budgets": "50M"}, {"evaluate": 3}])
def test_what_is_of_another_kind_is_refused(given, scored):
    with pytest.raises(TypeError, match="must be"):
        scored[0].sweep(tiny_samples(16), config=CONFIG, **given)


def test_a_folder_that_cannot_be_written_keeps_the_table(scored, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_optin.outcome.write_pruned", mock.Mock(side_effect=OSError("disk full")))
    with pytest.raises(NotSavedError, match="disk full"):
        scored[0].sweep(budgets=[0.5], scores=scored[1], save_dir=tmp_path, repeats=0)
    assert [point.folder for point in Sweep.load(tmp_path).points] == [None]


# The picture


def test_the_picture_is_one(place):
    pytest.importorskip("matplotlib")
    sweep, folder, _ = place
    figure = sweep.plot()
    assert (folder / "out/optin_sweep.png").read_bytes().startswith(b"\x89PNG\r\n")
    against, kept = figure.subfigs
    assert [axis.get_xlabel() for axis in against.axes] == [
        f"ms (dense / speed), 8 x {sweep.tokens} tokens",
        "MACs, millions",
        "MB",
    ]
    for axis in against.axes:
        (dense,) = [line for line in axis.lines if line.get_marker() == "*"]
        assert dense.get_ydata()[0] == sweep.value(sweep.dense)
    heads = kept.axes[0].images[0].get_array()
    share = [each["heads"]["kept"] / 4 for each in sweep.points[2].layers.values()]
    assert kept.axes[0].get_title() == "heads kept" and heads[:, 2].tolist() == pytest.approx(share)


def test_without_matplotlib_the_remedy_is_named_and_the_table_saved(place, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_optin.sweeping.sweep.png", png)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(NotInstalledError, match=r"pip install 'optimum-optin\[plots\]'"):
        place[0].plot()
    place[0].save(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["optin_sweep.json"]


def test_the_card_of_a_model_that_is_saved_afterwards_shows_the_picture(scored, tmp_path):
    pruner, scores = OptinPruner(scored[0].model), scored[1]
    pruner.sweep(budgets=[0.5], scores=scores, save_dir=tmp_path / "all", repeats=0)
    pruner.prune(scores=scores, flops=0.4, save_dir=tmp_path / "one")
    for folder in (tmp_path / "all/flops-0.5", tmp_path / "one"):
        assert (folder / "optin_sweep.png").read_bytes() == b"\x89PNG"
        assert "](optin_sweep.png)" in (folder / "README.md").read_text()
    OptinPruner(pruner.model).prune(scores=scores, flops=0.4, save_dir=tmp_path / "one")  # which made no sweep
    assert not (tmp_path / "one/optin_sweep.png").exists()
    assert "optin_sweep.png" not in (tmp_path / "one/README.md").read_text()


# The command


def test_the_command(place, tmp_path, capsys):
    _, folder, pruner = place
    pruner.model.save_pretrained(tmp_path / "dense")
    pruner.processor.save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    words = [str(tmp_path / "dense"), "--calibration", str(tmp_path / "texts.txt"), "--probes", "8", "--repeats", "0"]
    words += ["--evaluate", "glue/sst2", "--data-dir", str(folder / "glue"), "--output", str(tmp_path / "out")]
    swept = [*words, "--search", "ranked", "--budgets", "params=0.9,flops=0.8", "--table-only", "--json"]
    assert run("sweep", swept) == 0
    found = json.loads(capsys.readouterr().out)
    assert [point["budget"] for point in found["points"]] == [{"flops": 0.8, "params": 0.9}]
    assert found["points"][0]["params"] <= 0.9 * found["dense"]["params"] and found["points"][0]["flops"] <= 0.8
    assert found["points"][0]["metrics"].keys() == {"accuracy"} and found["timing"] is None
    assert found == {"output": str(tmp_path / "out"), **Sweep.load(tmp_path / "out").to_dict()}
    assert not [each for each in Path(tmp_path / "out").iterdir() if each.is_dir()]
    for more in (["--budgets", "50parrots"], ["--table-only", "--max-drop", "0.1"], ["--budgets", "0.5", "0.5"]):
        assert run("sweep", [*words, *more]) == 2
    assert "50parrots" in capsys.readouterr().err
