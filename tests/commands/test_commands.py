"""`optimum-cli optin`: every command, its exit codes and what it writes."""

import ast
import dataclasses
import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from optimum.commands import optimum_cli
from tiny import tiny_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel, ViTImageProcessorPil
from tsv import write_sst2
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores
from optimum_optin.benchmarking import Benchmark
from optimum_optin.command_line.arguments import load_config
from optimum_optin.command_line.options import argument_texts
from optimum_optin.commands import run
from optimum_optin.commands.run import COMMANDS, make_parser

ROOT = Path(__file__).parents[2]
REGISTER = ROOT / "optimum_optin" / "commands" / "register" / "register_optin.py"
FAST = ["--probes", "8", "--flops", "0.5"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a dense model, calibration texts, GLUE files, and what `prune` and `score` make of them."""
    place = tmp_path_factory.mktemp("commands")
    cache = tmp_path_factory.mktemp("cache")
    tiny_model(num_labels=2).save_pretrained(place / "dense")
    word_tokenizer().save_pretrained(place / "dense")
    (place / "texts.txt").write_text("\n".join(TEXTS))
    write_sst2(place / "glue")
    (place / "damaged").mkdir()
    (place / "torn").mkdir()
    for file in (place / "dense").iterdir():
        (place / "torn" / file.name).write_bytes(file.read_bytes()[: None if file.suffix == ".json" else 5000])
    (place / "damaged" / "config.json").write_text('{"quantization_config": {"quant_method": "optimum_optin"}}')
    data = [str(place / "dense"), "--calibration", str(place / "texts.txt")]
    measured = ["--evaluate", "glue/sst2", "--data-dir", str(place / "glue"), "--benchmark"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        patch.setenv("HF_DATASETS_CACHE", str(cache))  # of other processes
        assert run("prune", [*data, *FAST, *measured, "--output", str(place / "pruned")]) == 0
        shutil.copytree(place / "pruned", place / "empty", ignore=shutil.ignore_patterns("*.safetensors"))
        assert run("score", [*data, "--probes", "8", "--output", str(place / "scores")]) == 0
        yield place


def _json(capsys, command, *arguments):
    """What a command prints with `--json`."""
    capsys.readouterr()
    assert run(command, [*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


# Arguments


def test_every_field_of_the_configuration_is_an_option_with_its_help():
    helped = " ".join(make_parser("prune").format_help().split())
    texts = argument_texts(OptinConfig)
    for field in dataclasses.fields(OptinConfig):
        assert f"--{field.name.replace('_', '-')} " in helped
        assert texts[field.name].split()[-1] in helped
    assert "Default: surgeon." in helped


def test_options_arrive_with_their_types():
    words = "m --calibration d --flops 0.25 --min-heads 2 --max-length 9 --scorer exact --compensation none".split()
    words += ["--merging", "4,2,0"]
    expected = OptinConfig(
        flops=0.25, min_heads=2, max_length=9, scorer="exact", compensation="none", merging=[4, 2, 0]
    )
    assert load_config(make_parser("prune").parse_args(words)) == expected
    defaults = make_parser("prune").parse_args(["m"])
    assert load_config(defaults, OptinConfig(seed=3)) == OptinConfig(seed=3)


@pytest.mark.parametrize("command", ["prune", "plan", "score"])
def test_merging_has_its_earlier_name_as_well(command):
    parser = make_parser(command)
    words = ["m", "--scores", "s"] if command == "plan" else ["m", "--output", "o"]
    assert "--tokens" not in parser.format_help()
    for text, merging in (("auto", "auto"), ("4,2,0", (4, 2, 0))):
        with pytest.warns(FutureWarning, match="tokens .* is called merging now: .*--merging"):
            config = load_config(parser.parse_args([*words, "--tokens", text]), OptinConfig(merging=[1, 0], seed=3))
        assert config == OptinConfig(merging=merging, seed=3)
    with pytest.warns(FutureWarning), pytest.raises(ValueError, match="merging='auto' are one field: give merging"):
        load_config(parser.parse_args([*words, "--tokens", "none", "--merging", "auto"]))


@pytest.mark.parametrize("command", ["prune", "plan"])
def test_floors_are_given_by_role(command, capsys):
    words = ["m", "--scores", "s", "--floors"]
    parsed = make_parser(command).parse_args([*words, "heads=2,channels=8"])
    assert load_config(parsed) == OptinConfig(floors={"channels": 8, "heads": 2})
    for text in ("heads", "heads=", "=2", "heads=two", "heads=-1", "heads=2,heads=3", "heads=2,"):
        with pytest.raises(SystemExit):
            make_parser(command).parse_args([*words, text])
        assert "must be names and whole numbers such as heads=1,channels=8" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prune", "plan"])
def test_what_may_go_is_given_by_name(command, capsys):
    words = "m --scores s --include heads *.neurons --exclude layers.0 --exclude *.2.*".split()
    words += "--keep layers.1.heads=0,2 layers.2.heads=1 --ceilings heads=3,layers.*=40 --round-to neurons=8".split()
    assert load_config(make_parser(command).parse_args(words)) == OptinConfig(
        include=["heads", "*.neurons"],
        exclude=["layers.0", "*.2.*"],
        keep={"layers.2.heads": [1], "layers.1.heads": [2, 0]},
        ceilings={"heads": 3, "layers.*": 40},
        round_to={"neurons": 8},
    )
    for text in ("heads", "heads=", "=2", "heads=two", "heads=2,"):
        with pytest.raises(SystemExit):
            make_parser(command).parse_args(["m", "--scores", "s", "--keep", text])
        assert "must be a group and its units such as layers.3.heads=0,5" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        make_parser(command).parse_args([*words, "--keep", "layers.1.heads=1"])
    assert "layers.1.heads is there twice: give all its units at once" in capsys.readouterr().err


@pytest.mark.parametrize("page", ["README.md", "docs/source/guides/cli.mdx"])
def test_commands_in_the_docs_parse(page):
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    lines = re.findall(r"^ *optimum-cli optin (.+)$", text, flags=re.MULTILINE)
    assert lines
    for command, *words in map(str.split, lines):
        make_parser(command).parse_args(words)


@pytest.fixture
def register():
    """The module that Optimum reads at start-up."""
    spec = importlib.util.spec_from_file_location("register_optin", REGISTER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_registered_names_are_the_commands(register):
    assert list(register.COMMANDS) == list(COMMANDS)
    assert [command.COMMAND.name for command in register.REGISTER_COMMANDS] == ["optin"]


# What commands do


def test_prune_does_what_python_does(place):
    pruner = OptinPruner.from_pretrained(place / "dense", config=OptinConfig(flops=0.5, probes=8))
    expected = pruner.prune(TEXTS).state_dict()
    model = AutoModelForSequenceClassification.from_pretrained(place / "pruned")
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    report = PruningReport.load(place / "pruned")
    assert report.layers == pruner.report.layers
    assert report.evaluations == [pruner.evaluate("sst2", data_dir=place / "glue")]
    assert report.latency["batch_size"] == 8


def test_the_report_knows_a_data_set_of_the_hub(place, tmp_path, monkeypatch, capsys):
    def load(name, config, split):
        assert (name, config, split) == ("nyu-mll/glue", "sst2", "validation")
        return datasets.Dataset.from_dict({"sentence": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    data = ("--calibration", "nyu-mll/glue:sst2", "--calibration-split", "validation", "--num-samples", "16")
    made = _json(capsys, "prune", place / "dense", *data, *FAST, "--seed", "3", "--output", tmp_path / "out")
    drawn = {"dataset": "nyu-mll/glue", "config": "sst2", "split": "validation", "num_samples": 16, "seed": 3}
    assert made["calibration"] == {"samples": 16, **drawn}
    code = re.findall(r"```python\n(.*?)```", (tmp_path / "out" / "README.md").read_text(), flags=re.DOTALL)[1]
    monkeypatch.chdir(tmp_path)
    exec(code.replace("path/to/the/dense/model", str(place / "dense")), names := {})
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").state_dict()
    assert all(torch.equal(value, model[name]) for name, value in names["model"].state_dict().items())


def test_prune_from_scores_and_dry_run(place, tmp_path, capsys):
    data = (place / "dense", "--calibration", place / "texts.txt", "--scores", place / "scores")
    made = _json(capsys, "prune", *data, "--flops", "0.4", "--output", tmp_path / "out")
    assert made["output"] == str(tmp_path / "out")
    assert made["flops_requested"] == 0.4
    assert {**PruningReport.load(tmp_path / "out").to_dict(), "output": made["output"]} == made
    before = sorted(tmp_path.rglob("*"))
    plan = _json(capsys, "prune", *data, "--flops", "0.4", "--dry-run", "--output", tmp_path / "other")
    assert plan == _json(capsys, "plan", place / "dense", "--scores", place / "scores", "--flops", "0.4")["plans"][0]
    plan = _json(capsys, "prune", place / "dense", "--calibration", place / "texts.txt", *FAST, "--dry-run")
    assert plan["flops_requested"] == 0.5
    assert sorted(tmp_path.rglob("*")) == before


def test_work_that_was_begun_is_gone_on_with(place, tmp_path, capsys):
    model, texts = str(place / "dense"), str(place / "texts.txt")
    arguments = [model, "--calibration", texts, "--probes", "8", "--work-dir", str(tmp_path / "work")]
    scored = _json(capsys, "score", *arguments, "--output", str(tmp_path / "scores"))
    written = (tmp_path / "work/scores.safetensors").stat().st_mtime_ns
    _json(capsys, "prune", *arguments, "--output", str(tmp_path / "pruned"))
    assert (tmp_path / "work/scores.safetensors").stat().st_mtime_ns == written  # it is not scored again
    kept = Scores.from_pretrained(tmp_path / "work/optin_scores")
    assert kept.fingerprint == scored["fingerprint"]
    assert run("prune", [*arguments, "--seed", "1", "--output", str(tmp_path / "other")]) == 2
    assert "seed is 0 there, 1 here" in capsys.readouterr().err
    assert run("prune", [*arguments, "--scores", str(tmp_path / "scores"), "--output", str(tmp_path / "other")]) == 2
    assert "give one of them" in capsys.readouterr().err


def test_prune_to_what_may_be_lost(place, tmp_path, capsys):
    data = (place / "dense", "--calibration", place / "texts.txt", "--scores", place / "scores")
    made = _json(capsys, "prune", *data, "--max-drop", "100", "--metric", "divergence", "--output", tmp_path / "out")
    assert made["drops"]["metric"] == "divergence"
    assert made["flops_requested"] == min(each["flops"] for each in made["drops"]["tried"])


def test_of_several_processes_one_prints(place, capsys, monkeypatch):
    capsys.readouterr()
    monkeypatch.setattr(sys.modules[make_parser.__module__], "is_main", lambda: False)
    assert run("info", [str(place / "pruned")]) == 0
    assert capsys.readouterr().out == ""


def test_plan_takes_several_budgets(place, capsys):
    arguments = ("plan", place / "dense", "--scores", place / "scores")
    plans = _json(capsys, *arguments, "--flops", "0.7", "0.3", "--min-neurons", "2")["plans"]
    assert [plan["flops_requested"] for plan in plans] == [0.7, 0.3]
    assert all(roles["neurons"]["kept"] >= 2 for plan in plans for roles in plan["layers"].values())
    assert [plan["flops_requested"] for plan in _json(capsys, *arguments)["plans"]] == [0.6]


def test_plan_takes_amounts_other_budgets_and_layouts(place, capsys):
    arguments = ("plan", place / "dense", "--scores", place / "scores")
    share, amount = _json(capsys, *arguments, "--flops", "0.7", "0.1MMACs")["plans"]
    assert amount["flops_requested"] is None and amount["budgets"] == {"flops": "0.1MMACs"}
    assert 0 < amount["flops_achieved"] < share["flops_achieved"]
    (by_parameters,) = _json(capsys, *arguments, "--params", "0.8")["plans"]
    assert by_parameters["budgets"] == {"params": 0.8}
    (both,) = _json(capsys, *arguments, "--flops", "0.9", "--params", "0.8", "--layout", "uniform")["plans"]
    assert both["budgets"] == {"flops": 0.9, "params": 0.8}
    assert len({roles["neurons"]["kept"] for roles in both["layers"].values()}) == 1


def test_evaluate_measures_what_prune_reported(place, capsys):
    report = PruningReport.load(place / "pruned").evaluations[0]["metrics"]["accuracy"]
    for model, which in (("pruned", "pruned"), ("dense", "dense")):
        entry = _json(capsys, "evaluate", "--task", "glue/sst2", "--model", place / model, "--data-dir", place / "glue")
        assert entry["metrics"]["accuracy"] == {"value": report[which], "error": report[f"{which}_error"]}
    small = ("--data-dir", place / "glue", "--max-samples", "5", "--batch-size", "2")
    assert _json(capsys, "evaluate", "--task", "sst2", "--model", place / "dense", *small)["samples"] == 5


def test_benchmark_takes_the_length_from_the_report(place, capsys):
    arguments = ("benchmark", "--model", place / "pruned", "--dense", place / "dense", "--repeats", "2")
    latency = _json(capsys, *arguments)
    assert latency["tokens"] == PruningReport.load(place / "pruned").tokens
    assert _json(capsys, *arguments, "--tokens", "5", "--batch-size", "2")["tokens"] == 5


def test_benchmark_measures_grids_and_data_and_writes_files(place, tmp_path, capsys):
    sizes = ("--batch-size", "1", "2", "--tokens", "5", "9", "--threads", "1", "--repeats", "1", "--num-samples", "4")
    files = ("--data", place / "texts.txt", "--output", tmp_path / "new" / "found.json")
    found = _json(capsys, "benchmark", "--model", place / "pruned", "--dense", place / "dense", *sizes, *files)
    assert Benchmark.load(tmp_path / "new" / "found.json").to_dict() == found["benchmark"]
    cells = [each for each in found["benchmark"]["cells"] if each["model"] == "pruned"]
    shapes = [(each["work"], each["batch_size"], each["samples"]) for each in cells]
    assert shapes == [("grid", 1, 1), ("grid", 2, 2)] * 2 + [("data", 1, 4), ("data", 2, 4)]
    assert found["speedup"] == cells[0]["speedup"]["median"]


def test_info_reads_no_weights(place, tmp_path, capsys):
    data = _json(capsys, "info", place / "pruned")
    report = PruningReport.load(place / "pruned")
    assert (data["architecture"], data["model_type"]) == ("BertForSequenceClassification", "bert")
    assert data["layers"] == report.layers
    assert data["report"] == report.to_dict()
    (tmp_path / "config.json").write_bytes((place / "pruned" / "config.json").read_bytes())
    assert _json(capsys, "info", tmp_path)["report"] is None
    assert run("info", [str(place / "pruned")]) == 0
    printed = capsys.readouterr().out
    assert str(report) in printed and "glue/sst2" in printed and "latency" in printed


def test_push_uploads_the_folder_in_one_commit(place, hub, capsys):
    options = ("--private", "--revision", "small", "--commit-message", "first", "--scores", place / "scores")
    pushed = _json(capsys, "push", place / "pruned", "name", *options, "--token", "hf_me")  # the token's owner's
    assert pushed["repo_id"] == "me/name"
    assert pushed["url"].endswith(hub.repos["me/name"].find("small").oid)
    assert hub.repos["me/name"].private
    assert (hub.commits("me/name"), hub.commits("me/name", "small")) == ([], ["first"])
    assert Scores.from_pretrained("me/name", revision="small").tokens == PruningReport.load(place / "pruned").tokens
    there = AutoModelForSequenceClassification.from_pretrained("me/name", revision="small").state_dict()
    here = AutoModelForSequenceClassification.from_pretrained(place / "pruned").state_dict()
    assert all(torch.equal(value, there[name]) for name, value in here.items())


def test_prune_pushes_at_the_end(place, tmp_path, hub, capsys):
    data = (place / "dense", "--calibration", place / "texts.txt", *FAST, "--output", tmp_path / "out")
    made = _json(capsys, "prune", *data, "--push-to-hub", "me/small", "--private")
    assert made["url"].endswith(hub.repos["me/small"].find("main").oid) and hub.repos["me/small"].private
    for name in ("model.safetensors", "config.json", "optin_report.json", "tokenizer.json"):
        assert hub.files("me/small")[name] == (tmp_path / "out" / name).read_bytes(), name


def test_figures_of_evaluate_and_benchmark_go_into_report_and_card(place, tmp_path, capsys):
    folder = shutil.copytree(place / "pruned", tmp_path / "pruned")
    report = PruningReport.load(folder)
    dataclasses.replace(report, evaluations=[], latency=None).save(folder)
    compared = ("--model", folder, "--dense", place / "dense")
    glue = ("--task", "sst2", "--data-dir", place / "glue")
    before = (folder / "README.md").read_text()
    entry = _json(capsys, "evaluate", *compared, *glue)
    assert (folder / "README.md").read_text() == before and PruningReport.load(folder).evaluations == []
    assert entry == {"model": str(folder), **report.evaluations[0]}
    _json(capsys, "evaluate", *compared, *glue, "--update")
    assert PruningReport.load(folder).evaluations == report.evaluations
    assert (folder / "README.md").read_text() != before  # the benchmark is gone
    latency = _json(capsys, "benchmark", *compared, "--repeats", "2", "--update")
    assert latency.pop("benchmark")["schema"] == 1
    assert latency == {"model": str(folder), "dense": str(place / "dense"), **PruningReport.load(folder).latency}
    card = (folder / "README.md").read_text()
    assert "| glue/sst2 | validation |" in card and f"{latency['pruned_ms']:.1f} ms" in card
    assert _figures(card) == _figures(before), "all else stays as prune wrote it"
    AutoModelForSequenceClassification.from_pretrained(folder)


def _figures(card):
    return [line for line in card.splitlines() if not re.search("latency|Latency", line)]


def test_a_uniform_folder_is_pruned_too(place, tmp_path, hub, capsys):
    out = tmp_path / "out"
    data = (place / "dense", "--calibration", place / "texts.txt", "--flops", "0.8", "--layout", "uniform")
    _json(capsys, "prune", *data, "--output", out)
    assert _json(capsys, "info", out)["layers"] == PruningReport.load(out).layers
    _json(capsys, "push", out, "me/uniform")
    assert "import optimum_optin" not in hub.files("me/uniform")["README.md"].decode().split("## Before and after")[0]


# Exit codes


@pytest.fixture
def nothing_long(monkeypatch):
    """Fail the test if scoring begins."""
    monkeypatch.setattr("optimum_optin.pruner.score", lambda *_: pytest.fail("scoring began"))


@pytest.fixture
def nothing_sent(hub, monkeypatch):
    """Nobody is logged in, and the Hub must not be asked for anything."""
    monkeypatch.delenv("HF_TOKEN")
    yield
    assert hub.requests == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prune {dense} --output {out}", "give --calibration DATA, or --scores DIR"),
        ("prune {dense} --calibration {texts}", "give --output DIR to save to, or --dry-run"),
        ("prune {dense} --calibration {texts} --output {texts}", "texts.txt is a file; give a folder"),
        (
            "prune {dense} --calibration {texts} --output {out} --flops 1.4",
            "flops=1.4 must be a share of the dense model's",
        ),
        ("prune {dense} --calibration {texts} --output {out} --flops 0.5 --max-drop 0.1", "both say how small"),
        ("prune {dense} --calibration {texts} --max-drop 0.1 --dry-run", "it takes no --dry-run"),
        ("prune {dense} --calibration {texts} --output {out} --metric agreement", "give that as well"),
        ("prune {dense} --calibration {texts} --output {out} --max-drop 0.1 --metric f1", "or one of agreement"),
        ("prune {dense} --calibration {texts} --output {out} --scorer magic", "unknown scorer 'magic'"),
        ("prune {dense} --calibration nowhere.csv --output {out}", "no file or folder nowhere.csv"),
        ("prune {dense} --calibration {texts} --output {out} --text-columns a", "no column a; there are text"),
        ("prune {dense} --calibration {texts} --output {out} --evaluate sts2", "unknown task 'sts2'; known: glue/"),
        ("prune {dense} --calibration {texts} --output {out} --evaluate rte --data-dir {glue}", "holds no 'valid"),
        ("prune ./nowhere --calibration {texts} --output {out}", "nowhere"),
        ("score {dense} --output {out}", "give --calibration DATA"),
        ("plan {dense} --scores {dense}", "holds no scores"),
        ("plan {pruned} --scores {scores}", "these scores belong to another model"),
        ("evaluate --task sts2 --model {dense}", "unknown task 'sts2'"),
        ("evaluate --task stsb --model {dense} --data-dir {glue}", "STS-B/dev.tsv"),
        ("benchmark --model {dense} --dense {dense}", "give --tokens"),
        ("benchmark --model {pruned} --dense {dense} --variants trt", "'trt' is none of eager, compile"),
        ("benchmark --model {pruned} --dense {dense} --output {dense}", "is a folder: name a file in it"),
        ("benchmark --model {pruned} --dense {dense} --tokens 0", "tokens=0 must be a whole number"),
        ("info {dense}", "was not pruned with optimum-optin"),
        ("info {glue}", "config.json is missing"),
        ("info {damaged}", "structure must map group names to entries"),
        ("push {dense} me/name --token x", "was not pruned with optimum-optin"),
        ("push {pruned} a/b/c --token x", "a/b/c"),
        ("push {empty} me/name --token x", "holds no weights"),
        ("evaluate --task sst2 --model {torn} --data-dir {glue}", "torn (model.safetensors) are damaged"),
        ("push {pruned} me/name", "cannot push to me/name without a token: run `hf auth login`"),
        ("push {pruned} me/name --token x --scores {dense}", "holds no scores"),
        ("push {pruned} me/name --token x --create-pr --revision half", "create_pr=True opens a pull request to main"),
        ("prune {dense} --calibration {texts} --output {out} --push-to-hub me/name", "without a token"),
        ("prune {dense} --calibration {texts} --output {out} --push-to-hub a/b/c --token x", "a/b/c"),
        ("evaluate --task sst2 --model {pruned} --update", "--update needs --dense DENSE"),
        ("evaluate --task sst2 --model {dense} --dense {dense} --update", "dense has no optin_report.json"),
        ("benchmark --model {dense} --dense {dense} --update", "dense has no optin_report.json"),
    ],
)
@pytest.mark.usefixtures("nothing_long", "nothing_sent")
def test_bad_input_exits_2_with_one_line(place, tmp_path, capsys, words, message):
    paths = {name: place / name for name in ("dense", "pruned", "scores", "glue", "damaged", "torn", "empty")}
    command, *words = words.format(**paths, texts=place / "texts.txt", out=tmp_path / "out").split()
    capsys.readouterr()
    assert run(command, [*words, "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.splitlines()[-1].startswith(f"optimum-cli optin {command}: error: ")
    assert "Traceback" not in printed.err
    assert not (tmp_path / "out").exists()


FILES = {
    "latin.csv": (
        "text,label\nthe cat,1\ncaf\xe9,0\n".encode("latin-1"),
        "latin.csv is not text in UTF-8: byte 0xe9 in line 3",
    ),
    "latin.txt": ("the cat\ncaf\xe9\n".encode("latin-1"), "latin.txt is not text in UTF-8: byte 0xe9 in line 2"),
    "torn.jsonl": (b'{"text": "the cat"}\n{"text": \n', "torn.jsonl is no JSON: line 2"),
    "torn.parquet": (b"PAR1 the cat", "torn.parquet is no Parquet file that can be read"),
    "empty.csv": (b"", "empty.csv: there are no rows"),
    "rows.csv": (b"text,label\n" + b"the cat, a dog,1\n" * 9, "rows.csv: 9 of 9 rows do not have one cell for each"),
    "two.csv": (b"one,other\n" + b"the cat sat,a dog ran\n" * 9, "cannot tell the text columns among one, other: "),
    "labels.csv": (b"verdict,id\n" + b"good,1\nbad,2\n" * 9, "cannot tell the text columns among verdict, id: "),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.usefixtures("nothing_long")
def test_calibration_files_that_cannot_be_used_exit_2_with_one_line(place, tmp_path, capsys, name):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    words = [place / "dense", "--calibration", tmp_path / name, "--output", tmp_path / "out"]
    assert run("prune", list(map(str, words))) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert message in last and last.startswith("optimum-cli optin prune: error: ")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["data[1].csv", "a:b.csv", "a*.csv"])
def test_calibration_files_of_odd_names_and_forms(place, tmp_path, monkeypatch, capsys, name):
    """Labels are no text, a semicolon is found, and a path that exists is that path."""
    monkeypatch.chdir(tmp_path)
    for other in ("data1.csv", "ab.csv"):
        Path(other).write_text("text\nbig\n")
    rows = "".join(f"{text};{'good' if number % 2 else 'bad'}\n" for number, text in enumerate(TEXTS))
    Path(name).write_text(f"review;sentiment\n{rows}")
    words = (place / "dense", "--calibration", name, *FAST, "--search", "ranked")
    plan = _json(capsys, "prune", *words, "--dry-run")
    expected = _json(capsys, "prune", place / "dense", "--calibration", place / "texts.txt", *FAST, "--dry-run")
    assert plan == expected
    assert run("score", list(map(str, [*words[:3], "--text-columns", "stars", "--output", "out"]))) == 2
    assert "no column stars; there are review, sentiment" in capsys.readouterr().err
    assert run("score", ["dense", "--calibration", "c:d.csv", "--output", "out"]) == 2


def test_the_exit_code_is_the_programs(register, place):
    for words, code in ((["info", str(place)], 2), (["info", str(place / "pruned")], 0)):
        arguments = SimpleNamespace(command=words[0], arguments=words[1:])
        with pytest.raises(SystemExit) as exit_:
            register.OptinCommand.run(SimpleNamespace(args=arguments))
        assert exit_.value.code == code


def test_wrong_usage_exits_2(capsys):
    for words in (["--flops", "0.5"], ["m", "--probes", "many"], ["m", "--no-such-option"]):
        with pytest.raises(SystemExit) as exit_:
            run("prune", words)
        assert exit_.value.code == 2
    assert "usage: optimum-cli optin prune" in capsys.readouterr().err


def test_failures_exit_1_and_show_where_on_demand(place, capsys, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("optimum_optin.commands.evaluate.load_model", fail)
    words = ["--task", "sst2", "--model", "m"]
    assert run("evaluate", words) == 1
    assert capsys.readouterr().err == "optimum-cli optin evaluate: error: out of memory\n"
    assert run("evaluate", [*words, "--verbose"]) == 1
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.undo()
    assert run("evaluate", ["--task", "sst2", "--model", str(place / "dense")]) == 1  # the suite is offline
    assert "give data_dir=" in capsys.readouterr().err


def test_an_interruption_exits_130_and_leaves_nothing_half_written(place, tmp_path, monkeypatch):
    def interrupted(self, folder, **_):
        (Path(folder) / "config.json").write_text("{}")
        raise KeyboardInterrupt

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", interrupted)
    words = [str(place / "dense"), "--calibration", str(place / "texts.txt"), *FAST, "--output", str(tmp_path / "out")]
    assert run("prune", words) == 130
    assert not list(tmp_path.iterdir())


# The real program


def _optimum_cli(*words):
    command = [sys.executable, "-m", "optimum.commands.optimum_cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def _is_installed():
    try:
        return importlib.util.find_spec("optimum.commands.register") is not None
    except ModuleNotFoundError:
        return False


installed = pytest.mark.skipif(not _is_installed(), reason="optimum-optin is not installed (make test installs it)")


@installed
def test_optimum_cli_knows_optin(capsys, monkeypatch):
    """Two processes, for `--help`, and this one for wrong words: Optimum takes seconds to import."""
    own, shown = (_imports_of(*words) for words in (["--help"], ["optin", "--help"]))
    assert "optin" in own.stdout
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    # Nothing that Optimum does not import for its own help: some of its plug-ins (optimum-quanto) import torch.
    own, ours = (set(ast.literal_eval(each.stderr.strip().splitlines()[-1])) for each in (own, shown))
    assert ours <= own
    for words in ([], ["prine"]):
        monkeypatch.setattr(sys, "argv", ["optimum-cli", "optin", *words])
        with pytest.raises(SystemExit) as stopped:
            optimum_cli.main()
        said = capsys.readouterr().err
        assert stopped.value.code == 2 and "prune" in said and "Traceback" not in said


def _imports_of(*words):
    """What a process for some words prints, and what it has imported of all that is slow to import."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('optimum.commands.optimum_cli', run_name='__main__')\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'optimum_optin'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    return subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True)


@installed
def test_the_road_in_a_shell(place, tmp_path):
    out = tmp_path / "out"
    words = ["optin", "prune", place / "dense", "--calibration", place / "texts.txt", *FAST, "--output", out, "--json"]
    done = _optimum_cli(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(out)
    assert "compensation" in done.stderr  # progress bars


def test_scores_of_the_command_line_choose_schedules(tmp_path, capsys):
    image_module = pytest.importorskip("PIL.Image")
    tiny_model("vit").save_pretrained(tmp_path / "dense")
    ViTImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "dense")
    (tmp_path / "photos").mkdir()
    colours = torch.randint(0, 256, (24, 16, 16, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for number, pixels in enumerate(colours):
        image_module.fromarray(pixels.numpy()).save(tmp_path / "photos" / f"{number}.png")
    data = (tmp_path / "dense", "--calibration", tmp_path / "photos")
    scores = _json(capsys, "score", *data, "--merging", "auto", "--probes", "8", "--output", tmp_path / "scores")
    assert scores["config"]["merging"] == "auto"
    made = _json(capsys, "prune", *data, "--scores", tmp_path / "scores", *FAST[2:], "--output", tmp_path / "pruned")
    assert made["config"]["merging"] == "auto"
    _json(capsys, "score", *data, "--probes", "8", "--output", tmp_path / "others")
    refused = ["--scores", tmp_path / "others", "--merging", "auto", *FAST[2:], "--output", tmp_path / "no"]
    assert run("prune", list(map(str, [*data, *refused]))) == 2
    assert "hold no scores of tokens" in capsys.readouterr().err
