"""`optimum-cli optin`: every command, its exit codes and what it writes."""

import ast
import dataclasses
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from tiny import tiny_model
from transformers import AutoModelForSequenceClassification, PreTrainedModel
from tsv import write_sst2
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.commands import push, run
from optimum_optin.commands.arguments import load_config
from optimum_optin.commands.options import argument_texts
from optimum_optin.commands.run import COMMANDS, make_parser

ROOT = Path(__file__).parents[1]
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
    (place / "damaged" / "config.json").write_text('{"quantization_config": {"quant_method": "optimum_optin"}}')
    data = [str(place / "dense"), "--calibration", str(place / "texts.txt")]
    measured = ["--evaluate", "glue/sst2", "--data-dir", str(place / "glue"), "--benchmark"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(cache))
        patch.setenv("HF_DATASETS_CACHE", str(cache))  # of other processes
        assert run("prune", [*data, *FAST, *measured, "--output", str(place / "pruned")]) == 0
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
    assert "Default: 0.6." in helped


def test_options_arrive_with_their_types():
    words = "m --calibration d --flops 0.25 --min-heads 2 --max-length 9 --scorer exact --compensation none".split()
    expected = OptinConfig(flops=0.25, min_heads=2, max_length=9, scorer="exact", compensation="none")
    assert load_config(make_parser("prune").parse_args(words)) == expected
    defaults = make_parser("prune").parse_args(["m"])
    assert load_config(defaults, OptinConfig(seed=3)) == OptinConfig(seed=3)


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


def test_plan_takes_several_budgets(place, capsys):
    arguments = ("plan", place / "dense", "--scores", place / "scores")
    plans = _json(capsys, *arguments, "--flops", "0.7", "0.3", "--min-neurons", "2")["plans"]
    assert [plan["flops_requested"] for plan in plans] == [0.7, 0.3]
    assert all(roles["neurons"]["kept"] >= 2 for plan in plans for roles in plan["layers"].values())
    assert [plan["flops_requested"] for plan in _json(capsys, *arguments)["plans"]] == [0.6]


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


def test_push_uploads_the_folder_in_one_commit(place, monkeypatch, capsys):
    calls = []

    class Api:
        def __init__(self, token):
            calls.append(("token", token))

        def create_repo(self, repo_id, **options):
            calls.append(("create_repo", repo_id, options))
            return SimpleNamespace(repo_id=f"me/{repo_id}")

        def create_branch(self, repo_id, **options):
            calls.append(("create_branch", repo_id, options))

        def upload_folder(self, **options):
            calls.append(("upload_folder", options))
            return SimpleNamespace(pr_url=None, commit_url="address")

    monkeypatch.setattr(push, "HfApi", Api)
    options = ("--token", "hf_x", "--private", "--revision", "small", "--commit-message", "first")
    assert _json(capsys, "push", place / "pruned", "name", *options) == {"repo_id": "name", "url": "address"}
    upload = {"revision": "small", "create_pr": False, "commit_message": "first"}
    assert calls == [
        ("token", "hf_x"),
        ("create_repo", "name", {"private": True, "exist_ok": True}),
        ("create_branch", "me/name", {"branch": "small", "exist_ok": True}),
        ("upload_folder", {"repo_id": "me/name", "folder_path": str(place / "pruned"), **upload}),
    ]


# Exit codes


@pytest.fixture
def nothing_long(monkeypatch):
    """Fail the test if scoring begins."""
    monkeypatch.setattr("optimum_optin.pruner.score", lambda *_: pytest.fail("scoring began"))


@pytest.fixture
def no_token(monkeypatch):
    """Nobody is logged in."""
    monkeypatch.setattr(push, "get_token", lambda: None)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("prune {dense} --output {out}", "give --calibration DATA, or --scores DIR"),
        ("prune {dense} --calibration {texts}", "give --output DIR to save to, or --dry-run"),
        ("prune {dense} --calibration {texts} --output {texts}", "texts.txt is a file; give a folder"),
        ("prune {dense} --calibration {texts} --output {out} --flops 1.4", "flops=1.4 must be in (0, 1]"),
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
        ("info {dense}", "was not pruned with optimum-optin"),
        ("info {glue}", "config.json is missing"),
        ("info {damaged}", "structure must map group names to entries"),
        ("push {dense} me/name --token x", "was not pruned with optimum-optin"),
        ("push {pruned} a/b/c --token x", "a/b/c"),
        ("push {pruned} me/name", "no Hub token: log in with"),
    ],
)
@pytest.mark.usefixtures("nothing_long", "no_token")
def test_bad_input_exits_2_with_one_line(place, tmp_path, capsys, words, message):
    paths = {name: place / name for name in ("dense", "pruned", "scores", "glue", "damaged")}
    command, *words = words.format(**paths, texts=place / "texts.txt", out=tmp_path / "out").split()
    capsys.readouterr()
    assert run(command, [*words, "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert message in printed.err
    assert printed.err.splitlines()[-1].startswith(f"optimum-cli optin {command}: error: ")
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


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
def test_optimum_cli_knows_optin():
    assert "optin" in _optimum_cli("--help").stdout
    shown = _optimum_cli("optin", "--help")
    assert shown.returncode == 0
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    for words in (["optin"], ["optin", "prine"]):
        wrong = _optimum_cli(*words)
        assert wrong.returncode == 2 and "prune" in wrong.stderr and "Traceback" not in wrong.stderr


@installed
def test_help_of_optin_imports_nothing_heavy():
    """Nothing that Optimum does not import for its own help: some of its plug-ins (optimum-quanto) import torch."""
    code = (
        "import runpy, sys\n"
        "try:\n    runpy.run_module('optimum.commands.optimum_cli', run_name='__main__')\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'optimum_optin'} & set(sys.modules)\n"
        "print(sorted(heavy), file=sys.stderr)"
    )
    imported = [
        subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=True).stderr
        for words in (["--help"], ["optin", "--help"])
    ]
    own, ours = (set(ast.literal_eval(stderr.strip().splitlines()[-1])) for stderr in imported)
    assert ours <= own


@installed
def test_the_road_in_a_shell(place, tmp_path):
    out = tmp_path / "out"
    words = ["optin", "prune", place / "dense", "--calibration", place / "texts.txt", *FAST, "--output", out, "--json"]
    done = _optimum_cli(*words)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["output"] == str(out)
    assert "compensation" in done.stderr  # progress bars
