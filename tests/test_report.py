"""Reports: their figures are typed, read as the dicts that they are on disk, and are saved in that form."""

import argparse
import dataclasses
import json

import pytest
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.commands import info
from optimum_optin.figures import CalibrationSource, Evaluation, HubModel, Latency
from optimum_optin.publishing.card import model_card
from optimum_optin.publishing.card_text import card_text
from optimum_optin.reasons import reasons_of
from optimum_optin.report import PruningPlan, PruningReport

LATENCY = {
    "device": "cpu",
    "hardware": "A processor",
    "threads": 2,
    "dtype": "float32",
    "batch_size": 8,
    "tokens": 93,
    "repeats": 15,
    "dense_ms": 210.0,
    "pruned_ms": 130.0,
    "speedup": 1.615,
}
ACCURACY = {"dense": 0.9, "dense_error": 0.01, "pruned": 0.8, "pruned_error": 0.02}
EVALUATION = {
    "task": "glue/sst2",
    "dataset": "nyu-mll/glue",
    "config": "sst2",
    "split": "validation",
    "samples": 872,
    "metrics": {"accuracy": ACCURACY, "f1": {"dense": 0.7, "dense_error": 0.0}},
}
DRAWN = {"samples": 24, "dataset": "user/name", "config": None, "split": "train", "num_samples": 32, "seed": 0}
FIGURES = {
    "divergence": {"distance": 0.125, "agreement": None, "samples": 8, "held_out": False},
    "evaluations": [EVALUATION],
    "latency": LATENCY,
    "calibration": DRAWN,
    "base": {"repo_id": "user/dense", "commit": None},
}
LAYERS = {
    f"layers.{index}": {"heads": {"kept": 2, "units": 4}, "neurons": {"kept": 30, "units": 48}} for index in range(2)
}
COUNTS = {
    "flops_requested": 0.5,
    "flops_achieved": 0.49,
    "tokens": 93,
    "macs_dense": 2_000_000,
    "macs_pruned": 1_000_000,
    "params_dense": 200_000,
    "params_pruned": 150_000,
}


LEFT_WHOLE = {
    **{f"layers.{index}.heads": f"encoder.layer.{index}.query_proj runs 2 times in a pass" for index in range(12)},
    "a.weight[0], b.weight[0]": "an operation before swallows NaN",
    **{f"layers.{index}.neurons": "it is 0.5 of its size off what it is masked" for index in (3, 5)},
    "layers.7.neurons": "it is 1.2e-3 of its size off what it is masked",
}
FOLDED = [
    "layers.0.heads and 11 more: encoder.layer.0.query_proj runs 2 times in a pass",
    "a.weight[0], b.weight[0]: an operation before swallows NaN",
    "layers.3.neurons and 2 more: it is 0.5 of its size off what it is masked",
]


def _report(**changes):
    return PruningReport(**{**COUNTS, "layers": LAYERS, **FIGURES, **changes})


def test_figures_given_as_dicts_are_typed():
    report = _report()
    assert report.latency == Latency(**LATENCY) and report.latency.speedup == 1.615
    assert report.evaluations[0].metrics["accuracy"].pruned == 0.8
    assert (report.calibration.split, report.calibration.text_columns) == ("train", None)
    assert report.base == HubModel("user/dense", None)
    assert dataclasses.replace(report) == report, "and stay so"


def test_figures_read_as_the_dicts_that_they_were():
    report = _report()
    assert report.latency["speedup"] == 1.615 and {**report.latency} == LATENCY
    assert report.evaluations == [EVALUATION] and report.evaluations[0]["metrics"]["accuracy"]["dense"] == 0.9
    assert report.divergence == FIGURES["divergence"] and report.divergence["agreement"] is None
    assert "pruned" not in report.evaluations[0].metrics["f1"]
    assert _report(calibration={"samples": 24}).calibration == {"samples": 24} != report.calibration == DRAWN
    assert report.calibration.get("text_columns") is None
    with pytest.raises(KeyError, match="text_columns"):
        report.calibration["text_columns"]


def test_figures_are_merged_and_copied_like_dicts():
    report = _report()
    assert report.latency | {"threads": 4} == {**LATENCY, "threads": 4}
    assert {"threads": 4, "more": 1} | report.latency == {"more": 1, **LATENCY}
    copied = report.evaluations[0].copy()
    copied["metrics"]["accuracy"]["dense"] = 0.0
    assert type(copied) is dict and report.evaluations == [EVALUATION]


def test_an_evaluation_need_not_name_the_configuration_of_its_data_set():
    entry = {name: value for name, value in EVALUATION.items() if name != "config"}
    report = _report(evaluations=[entry])
    assert report.to_dict()["evaluations"] == [entry] and "config" not in report.evaluations[0]
    assert _report(evaluations=[{**entry, "config": None}]).to_dict()["evaluations"] == [{**entry, "config": None}]
    assert "config: sst2" not in str(model_card(tiny_model(), report, name="user/small"))


def test_the_form_on_disk_is_that_of_plain_dicts(tmp_path):
    rest = {
        "merges": {"layers.0": 2},
        "left_whole": LEFT_WHOLE,
        "seconds": {"score": 0.5},
        "config": {"flops": 0.5, "tokens": (2, 0)},
    }
    report = _report(**rest)
    assert json.dumps(report.to_dict()) == json.dumps(
        {**COUNTS, "layers": LAYERS, **rest, "output_weight": None, **FIGURES, "refit": {}}
        | {"continuations": None, "drops": None, "bytes_dense": 0, "bytes_pruned": 0, "peak_dense": 0, "peak_pruned": 0}
    )
    assert report.to_dict()["layers"] is not report.layers
    report.save(tmp_path)
    assert PruningReport.load(tmp_path).evaluations == report.evaluations


def test_one_evaluation_for_each_task_and_split():
    report = _report()
    again, other = Evaluation(**{**EVALUATION, "samples": 5}), Evaluation(**{**EVALUATION, "split": "test"})
    assert report.evaluated(again).evaluated(other).evaluations == [again, other]


def test_it_prints_what_was_measured():
    lines = str(_report()).split("\n")
    assert lines[4:8] == [
        "outputs against the dense model's, 8 calibration samples: divergence 0.125",
        "glue/sst2, validation, 872 samples: accuracy 90.0 ± 1.0 -> 80.0 ± 2.0",
        "glue/sst2, validation, 872 samples: f1 70.0 ± 0.0 -> -",
        "latency, 8 x 93 tokens, A processor, 2 threads, float32: 210.0 ms -> 130.0 ms (1.61x the speed)",
    ]


@pytest.mark.parametrize(
    "damage",
    [{"latency": 3}, {"evaluations": [{"task": "glue/sst2"}]}, {"calibration": {"new": 1}}, {"divergence": []}],
    ids=["a number", "keys are missing", "unknown keys", "a list"],
)
def test_damaged_figures_are_named(tmp_path, damage):
    (tmp_path / "optin_report.json").write_text(json.dumps({**_report().to_dict(), **damage}))
    with pytest.raises(ValueError, match=r"optin_report\.json is damaged, or of a newer version"):
        PruningReport.load(tmp_path)


def test_a_source_without_names():
    assert CalibrationSource(24).to_dict() == {"samples": 24}


CHANNELS = {"channels": {"kept": 5, "units": 64}}
THREE_ROLES = {"stem": CHANNELS, **LAYERS, "layers.2": {"neurons": {"kept": 0, "units": 48}, **CHANNELS}}


def test_the_table_has_a_column_for_every_role():
    assert str(PruningPlan(0.5, 0.5, 93, THREE_ROLES)).split("\n")[1:] == [
        "layer           heads kept    neurons kept    channels kept",
        "stem                     -               -           5 / 64",
        "layers.0             2 / 4         30 / 48                -",
        "layers.1             2 / 4         30 / 48                -",
        "layers.2                 -          0 / 48           5 / 64",
    ]
    assert str(PruningPlan(0.5, 0.5, 93, LAYERS, {"layers.0": 3})).split("\n")[1:] == [
        "layer           heads kept    neurons kept   tokens merged",
        "layers.0             2 / 4         30 / 48               3",
        "layers.1             2 / 4         30 / 48               0",
    ]
    (only,) = str(PruningPlan(0.5, 0.5, 93, {"stem": CHANNELS})).split("\n")[2:]
    assert only == f"stem{'5 / 64':>25}"


def test_the_card_tells_of_every_role():
    text = card_text(tiny_model(), _report(layers=THREE_ROLES, merges={"layers.0": 3}), name="small")
    left = "4 of 8 attention heads, 60 of 144 feed-forward neurons and 10 of 128 channels are left."
    assert f"made smaller without training: {left}" in text
    assert "| layer | heads | kept | neurons | kept | channels | kept | tokens merged after |" in text
    assert f"| stem |  |  |  |  | 5 / 64 | {'█' * 1}{'░' * 15} | 0 |" in text
    assert f"| layers.1 | 2 / 4 | {'█' * 8}{'░' * 8} | 30 / 48 | {'█' * 10}{'░' * 6} |  |  | 0 |" in text
    alone = card_text(tiny_model(), _report(layers={"stem": CHANNELS}), name="small")
    assert "without training: 5 of 64 channels are left." in alone and "| layer | channels | kept |" in alone


@pytest.mark.parametrize("with_report", [True, False])
def test_info_shows_every_role(tmp_path, with_report):
    structure = {"stem.channels": {"units": 64, "kept": "0-4"}, "layers.0.neurons": {"units": 48, "kept": "0-47"}}
    config = {"quantization_config": {"quant_method": "optimum_optin", "structure": structure}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layers = {"stem": CHANNELS, "layers.0": {"neurons": {"kept": 48, "units": 48}}}
    if with_report:
        _report(layers=layers).save(tmp_path)
    data, text = info.run(argparse.Namespace(folder=tmp_path, verify=False))
    assert data["layers"] == layers
    assert text.split("\n")[-3:] == [
        "layer           neurons kept    channels kept",
        "stem                       -           5 / 64",
        "layers.0             48 / 48                -",
    ]


def test_what_is_left_whole_is_said_once_for_each_reason():
    assert [str(reason) for reason in reasons_of(LEFT_WHOLE)] == FOLDED
    assert [len(reason.names) for reason in reasons_of(LEFT_WHOLE)] == [12, 2, 3], "and no name is lost"
    assert reasons_of({}) == []
    (many,) = reasons_of({f"{letter}.weight": "why" for letter in "abcdef"})
    assert str(many) == "a.weight, b.weight, c.weight and 3 more: why"


def test_the_report_lists_what_is_left_whole_and_says_what_the_budget_is_of():
    text = str(_report(left_whole=LEFT_WHOLE))
    assert text.split("\n")[-3:] == [f"left whole: {line}" for line in FOLDED]
    assert text.startswith("FLOPs (MACs of what can be pruned at 93 tokens): requested 50.0%")
    assert str(_report()).startswith("FLOPs (layer MACs at 93 tokens)") and "left whole" not in str(_report())


def test_reports_of_earlier_versions_have_nothing_left_whole(tmp_path):
    fields = _report().to_dict()
    del fields["left_whole"]
    (tmp_path / "optin_report.json").write_text(json.dumps(fields))
    assert PruningReport.load(tmp_path).left_whole == {}


def test_the_card_lists_what_is_left_whole():
    text = card_text(tiny_model(), _report(left_whole=LEFT_WHOLE), name="small")
    assert "- `layers.0.heads` and 11 more: encoder.layer.0.query_proj runs 2 times in a pass\n" in text
    assert "| MACs of what can be pruned |  | asked 50.0% |" in text
    many = {f"{letter}.heads": f"{letter} is *odd*. " + 99 * "Indeed. " for letter in "abcdefghij"}
    text = card_text(tiny_model(), _report(left_whole=many), name="small")
    assert text.count(" is \\*odd\\*. Indeed.") == 8 and "- 2 more reasons are in `optin_report.json`\n" in text
    assert max(map(len, text.split("\n"))) < 700, "each is cut off where it gets long"
    assert "left whole" not in card_text(tiny_model(), _report(), name="small")


def test_info_lists_what_is_left_whole(tmp_path):
    config = {"quantization_config": {"quant_method": "optimum_optin", "structure": {}}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    _report(left_whole=LEFT_WHOLE).save(tmp_path)
    data, text = info.run(argparse.Namespace(folder=tmp_path, verify=False))
    assert data["report"]["left_whole"] == LEFT_WHOLE
    assert text.split("\n")[-3:] == [f"left whole: {line}" for line in FOLDED]


def test_a_refit_to_an_output_alone_is_said(tmp_path):
    pruner = OptinPruner(tiny_model("swin"))
    pruner.prune(tiny_samples(model=pruner.model), OptinConfig(flops=0.6, probes=4))
    assert set(pruner.report.refit) == {f"layers.{index}.heads" for index in range(3)}
    assert "heads of 3 layers: refitted to what it writes alone, as no sum was found" in str(pruner.report)
    pruner.report.save(tmp_path)
    assert PruningReport.load(tmp_path) == pruner.report
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(), OptinConfig(flops=0.6, probes=4))
    assert pruner.report.refit == {} and "refitted" not in str(pruner.report)
