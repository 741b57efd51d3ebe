"""After hours of work nothing is lost: what can refuse does so before, a card never does, and results go elsewhere."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from tiny import tiny_model
from transformers import AutoModelForSequenceClassification, BertLMHeadModel
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport, Scores
from optimum_optin.commands import run
from optimum_optin.files.folders import NotSavedError
from optimum_optin.publishing.pruned_folders import push_folder, write_report
from optimum_optin.publishing.rescue import save_somewhere
from optimum_optin.scoring import registry

CONFIG = OptinConfig(flops=0.5, probes=8)
FAST = ("--probes", "8", "--flops", "0.5")


@pytest.fixture
def no_scoring(monkeypatch):
    def refuse(*_):
        raise AssertionError("scoring began before the place was refused")

    monkeypatch.setitem(registry._SCORERS, "gauss_newton", refuse)


@pytest.fixture(scope="module")
def pruned():
    pruner = OptinPruner(tiny_model(), word_tokenizer())
    pruner.prune(TEXTS, CONFIG)
    return pruner


@pytest.fixture
def warnings(monkeypatch):
    said = []
    for module in ("publishing.card", "publishing.pruned_folders", "publishing.rescue"):
        monkeypatch.setattr(f"optimum_optin.{module}.logger.warning", said.append)
    return said


@pytest.fixture
def place(tmp_path):
    """A dense model and calibration texts, as the command line takes them."""
    tiny_model(num_labels=2).save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS))
    return tmp_path


def prune_by_command(place, output, *words):
    data = [str(place / "dense"), "--calibration", str(place / "texts.txt")]
    return run("prune", [*data, *FAST, "--output", str(output), *words])


# The card

LATIN = "---\nlicense: mit\n---\n# Größe\n\nMein Text.\n".encode("latin-1")
TAGS = [
    "tags: [{a: b}, news]",
    "tags: {a: b}",
    "tags: [[x], news]",
    "tags: 7",
    "tags: [7, 1.5, 2024-01-01, true, null, news]",
    "license: 2024-01-01",
    "license: [mit, {a: b}]",
    "license: {a: b}",
    "language: no",
    "language: [no, 1, {a: b}]",
    "datasets: {a: b}",
    "datasets: [{a: b}, imdb]",
    "base_model: {a: b}",
    "base_model: [a, [b]]",
    "model-index: 7",
    "model-index: [{name: x, results: 7}]",
    "metrics: [{a: b}]",
    "pipeline_tag: [a]",
    "library_name: {a: b}",
    "tags: &a [*a]",
    "1: 2",
    "license: [mit",
    "!!python/object:os.system {}",
    "? [a]\n: b",
    "- a",
    "tags: " + "[" * 2000,
    'card: "\\ud800"',
]


@pytest.mark.parametrize("metadata", TAGS)
def test_odd_metadata_of_the_dense_model(metadata, pruned, tmp_path, monkeypatch):
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense/README.md").write_text(f"---\n{metadata}\n---\n# Dense\n")
    monkeypatch.setattr(pruned.pruned_model.config, "_name_or_path", str(tmp_path / "dense"))
    pruned.save_pretrained(tmp_path / "out")
    data = ModelCard.load(tmp_path / "out/README.md").data
    assert {"optimum-optin", "pruning"} <= set(data.tags) and all(isinstance(tag, str) for tag in data.tags)
    assert ("news" in data.tags) == ("news" in metadata)
    if "7, 1.5" in metadata:
        assert {"7", "1.5", "2024-01-01"} <= set(data.tags) and not {"True", "None"} & set(data.tags)
    assert "## Load it" in (tmp_path / "out/README.md").read_text()
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("metadata", TAGS)
def test_odd_metadata_of_a_card_that_is_there(metadata, pruned, tmp_path, warnings):
    text = f"---\n{metadata}\n---\n# Mine\n\nMy text.\n"
    (tmp_path / "README.md").write_text(text)
    pruned.save_pretrained(tmp_path)
    now = (tmp_path / "README.md").read_text()
    assert "# Mine\n\nMy text." in now
    assert "## Load it" in now or (now == text and warnings)
    AutoModelForSequenceClassification.from_pretrained(tmp_path)


@pytest.mark.parametrize("content", [LATIN, b"\x00\xff\xfe", b"x" * (11 * 2**20)], ids=["latin-1", "binary", "huge"])
def test_a_card_that_cannot_be_read_stays(content, pruned, tmp_path, warnings):
    (tmp_path / "README.md").write_bytes(content)
    inode = (tmp_path / "README.md").stat().st_ino
    pruned.save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_bytes() == content and (tmp_path / "README.md").stat().st_ino == inode
    assert "stays as it is" in warnings[0] and ("UTF-8" in warnings[0] or "11,534,336 bytes" in warnings[0])
    report = dataclasses.replace(pruned.report, seconds={"score": 3.0})
    write_report(tmp_path, report)
    assert (tmp_path / "README.md").read_bytes() == content and PruningReport.load(tmp_path) == report


@pytest.mark.parametrize("kind", ["pipe", "folder", "latin-1"])
def test_an_odd_card_beside_the_dense_model(kind, tmp_path):
    tiny_model().save_pretrained(tmp_path / "dense")
    card = tmp_path / "dense/README.md"
    if kind == "pipe":
        os.mkfifo(card)
    elif kind == "folder":
        card.mkdir()
    else:
        card.write_bytes(LATIN)
    pruner = OptinPruner.from_pretrained(tmp_path / "dense", processor=word_tokenizer())
    pruner.prune(TEXTS, CONFIG, save_dir=tmp_path / "out")
    assert "## Load it" in (tmp_path / "out/README.md").read_text()


def test_a_card_that_cannot_be_made(pruned, tmp_path, monkeypatch, warnings):
    def fail(*_, **__):
        raise ZeroDivisionError("no parameters")

    monkeypatch.setattr("optimum_optin.publishing.card.card_text", fail)
    pruned.save_pretrained(tmp_path / "new")
    card = ModelCard.load(tmp_path / "new/README.md")
    assert card.text.lstrip().startswith("# new") and "optimum-optin" in card.data.tags
    assert "ZeroDivisionError" in warnings[0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/README.md").write_text("My text.\n")
    pruned.save_pretrained(tmp_path / "mine")
    assert (tmp_path / "mine/README.md").read_text() == "My text.\n"
    for name in ("new", "mine"):
        AutoModelForSequenceClassification.from_pretrained(tmp_path / name)


def test_cards_that_cannot_be_read_are_not_pushed_nor_overwritten(pruned, hub, tmp_path, warnings):
    pruned.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(LATIN)
    push_folder(tmp_path, "me/small")
    assert "README.md" not in hub.files("me/small") and "model.safetensors" in hub.files("me/small")
    pruned.push_to_hub("me/other")
    hub.repos["me/other"].branches["main"][-1].files["README.md"] = LATIN
    pruned.push_to_hub("me/other")
    push_folder(tmp_path, "me/other")
    assert hub.files("me/other")["README.md"] == LATIN


# Before the work


@pytest.mark.usefixtures("no_scoring")
def test_what_cannot_be_saved_is_refused_before_the_work(tmp_path):
    class Function:
        def __call__(self, *texts, **options):
            return word_tokenizer()(*texts, **options)

        model_max_length = 64

    with pytest.raises(ValueError, match="the processor cannot be saved.*save_pretrained"):
        OptinPruner(tiny_model(), Function()).prune(TEXTS, CONFIG, save_dir=tmp_path / "out")
    model = tiny_model()
    model.config.extra = {1, 2}
    with pytest.raises(ValueError, match="the configuration cannot be saved.*set is not JSON"):
        OptinPruner(model, word_tokenizer()).prune(TEXTS, CONFIG, save_dir=tmp_path / "out")
    model = tiny_model(model_class=BertLMHeadModel)
    model.generation_config.temperature = 0.5  # without sampling, which transformers does not save
    with pytest.raises(ValueError, match="the generation configuration cannot be saved.*temperature"):
        OptinPruner(model, word_tokenizer()).prune(TEXTS, CONFIG, save_dir=tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_scoring")
@pytest.mark.parametrize("command", ["prune", "score"])
def test_commands_refuse_places_before_the_work(command, place, capsys):
    def fails_on(output):
        data = [str(place / "dense"), "--calibration", str(place / "texts.txt"), "--probes", "8"]
        assert run(command, [*data, "--output", str(output)]) == 2
        return capsys.readouterr().err.strip().splitlines()[-1]

    assert "File name too long; give another folder" in fails_on(place / ("x" * 256))
    (place / "there").mkdir()
    os.mkfifo(place / "there" / ("config.json" if command == "prune" else "optin_scores.json"))
    assert "is to be a file, and is a pipe" in fails_on(place / "there")


# After the work


def test_names_and_pipes_that_are_no_obstacle(place):
    (place / "used").mkdir()
    os.mkfifo(place / "used/pipe")
    (place / "used/README.md").write_bytes(LATIN)
    for output in (place / "used", place / ("x" * 246)):
        assert prune_by_command(place, output) == 0
        AutoModelForSequenceClassification.from_pretrained(output)
    assert (place / "used/pipe").is_fifo() and (place / "used/README.md").read_bytes() == LATIN


def _spoil(monkeypatch, place, how):
    """Have saving to `place / "out"` fail once the work is done."""
    pruned = OptinPruner.prune

    def prune(self, *arguments, **options):
        model = pruned(self, *arguments, **options)
        _happen(place, how)
        return model

    monkeypatch.setattr(OptinPruner, "prune", prune)


def _happen(place, how):
    if how == "a file":
        (place / "out").write_text("mine")
    elif how == "a folder":
        (place / "out/config.json").mkdir(parents=True)


@pytest.mark.parametrize("how", ["a file", "a folder"])
def test_the_command_saves_elsewhere_and_says_where(how, place, monkeypatch, capsys):
    _spoil(monkeypatch, place, how)
    (place / "out-1").mkdir()  # somebody's
    assert prune_by_command(place, place / "out", "--json") == 1
    out, err = capsys.readouterr()
    data = json.loads(out)
    assert data["output"] == str(place / "out-2") and data["flops_requested"] == 0.5
    last = err.strip().splitlines()[-1]
    assert f"could not save to {place / 'out'}; the result was saved to {place / 'out-2'} instead" in last
    AutoModelForSequenceClassification.from_pretrained(place / "out-2")
    assert not list((place / "out-1").iterdir()) and len(list(place.iterdir())) == 5


def test_the_command_saves_to_the_temporary_directory_at_last(place, monkeypatch, capsys, tmp_path_factory):
    rescue, save = tmp_path_factory.mktemp("rescue"), OptinPruner.save_pretrained

    def fail(self, folder, **options):
        if str(folder).startswith(str(place)):
            raise OSError(28, "No space left on device")
        save(self, folder, **options)

    monkeypatch.setattr(OptinPruner, "save_pretrained", fail)
    monkeypatch.setattr("tempfile.tempdir", str(rescue))
    assert prune_by_command(place, place / "out") == 1
    (saved,) = rescue.glob("optin-*/out")
    AutoModelForSequenceClassification.from_pretrained(saved)
    assert f"saved to {saved} instead" in capsys.readouterr().err


def test_the_scores_of_the_command_are_saved_elsewhere(place, monkeypatch, capsys):
    scored = OptinPruner.score

    def score(self, *arguments):
        scores = scored(self, *arguments)
        (place / "out").write_text("mine")
        return scores

    monkeypatch.setattr(OptinPruner, "score", score)
    data = [str(place / "dense"), "--calibration", str(place / "texts.txt"), "--probes", "8"]
    assert run("score", [*data, "--output", str(place / "out")]) == 1
    assert f"saved to {place / 'out-1'} instead" in capsys.readouterr().err
    assert Scores.from_pretrained(place / "out-1").terms and (place / "out").read_text() == "mine"


@pytest.mark.parametrize("command", ["evaluate", "benchmark"])
def test_figures_that_cannot_be_noted_are_printed(command, place, monkeypatch, capsys):
    assert prune_by_command(place, place / "out") == 0
    (place / "SST-2").mkdir()
    rows = "".join(f"{text}\t{index % 2}\n" for index, text in enumerate(TEXTS))
    (place / "SST-2/dev.tsv").write_text(f"sentence\tlabel\n{rows}")
    capsys.readouterr()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(PruningReport, "save", full)
    compared = ["--model", str(place / "out"), "--dense", str(place / "dense"), "--update", "--json"]
    own = {"evaluate": ["--task", "sst2", "--data-dir", str(place)], "benchmark": ["--repeats", "2"]}[command]
    assert run(command, [*compared, *own]) == 1
    out, err = capsys.readouterr()
    assert json.loads(out)["metrics" if command == "evaluate" else "speedup"]
    assert re.search(f"the figures could not be noted in {place / 'out'}.*No space left", err)


def test_a_working_directory_that_goes_costs_no_model(place, monkeypatch, capsys, tmp_path_factory):
    rescue = tmp_path_factory.mktemp("rescue")
    (place / "here").mkdir()
    monkeypatch.chdir(place / "here")
    monkeypatch.setattr("tempfile.tempdir", str(rescue))
    pruned = OptinPruner.prune

    def prune(self, *arguments, **options):
        pruned(self, *arguments, **options)
        (place / "here").rmdir()

    monkeypatch.setattr(OptinPruner, "prune", prune)
    assert prune_by_command(place, "out") == 1
    (saved,) = rescue.glob("optin-*/out")
    assert f"the result was saved to {saved} instead" in capsys.readouterr().err
    AutoModelForSequenceClassification.from_pretrained(saved)


@pytest.mark.parametrize("output", ["/", "..", "a/.", "a/"])
def test_there_is_a_place_beside_any_output(output, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    tried = []

    def save(folder):
        tried.append(folder)
        raise OSError("full")

    with pytest.raises(NotSavedError, match="could be saved nowhere"):
        save_somewhere(save, output)
    assert len(tried) == (2 if output == "/" else 3) and len(set(tried)) == len(tried)
    assert not list(tmp_path.iterdir())


def fails(*_, **__):
    raise RuntimeError("boom")


@pytest.mark.parametrize(
    "what",
    ["pipeline.count_macs", "pipeline.PruningReport", "publishing.origin.copy_companions", "report.PruningReport.save"],
)
def test_a_model_without_a_report_is_saved_by_the_command(what, place, monkeypatch, capsys):
    monkeypatch.setattr(f"optimum_optin.{what}", fails)
    assert prune_by_command(place, place / "out", "--json") == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result.pop("output") == str(place / "out") and bool(result) == (
        what in ("publishing.origin.copy_companions", "report.PruningReport.save")
    )
    assert f"boom (the pruned model is saved in {place / 'out'}, without report and card)" in err.splitlines()[-1]
    model = AutoModelForSequenceClassification.from_pretrained(place / "out")
    assert (
        0
        < sum(weight.numel() for weight in model.parameters())
        < sum(weight.numel() for weight in tiny_model(num_labels=2).parameters())
    )
    assert (place / "out/tokenizer.json").exists() and not (place / "out-scores").exists()


@pytest.mark.parametrize("what", ["copy_of", "refit", "_divergences"])
def test_scores_of_a_pruning_that_fails_are_saved_by_the_command(what, place, monkeypatch, capsys, caplog):
    with monkeypatch.context() as patch:
        patch.setattr(f"optimum_optin.pipeline.{what}", fails)
        assert prune_by_command(place, place / "out", "--json") == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines()[-1] == "optimum-cli optin prune: error: boom"
    assert f"the scores are saved in {place / 'out-scores'}: --scores takes them." in caplog.text
    assert not (place / "out").exists()
    data = [str(place / "dense"), "--scores", str(place / "out-scores"), "--calibration", str(place / "texts.txt")]
    assert run("prune", [*data, "--output", str(place / "out")]) == 0


@pytest.mark.parametrize("what", ["compare", "latency_entry", "push"])
def test_what_fails_after_saving_costs_no_result(what, place, monkeypatch, capsys, hub):
    (place / "SST-2").mkdir()
    rows = "".join(f"{text}\t{index % 2}\n" for index, text in enumerate(TEXTS))
    (place / "SST-2/dev.tsv").write_text(f"sentence\tlabel\n{rows}")
    monkeypatch.setattr(f"optimum_optin.outcome.{what}", fails)
    words = ["--evaluate", "sst2", "--data-dir", str(place), "--benchmark", "--push-to-hub", "me/small", "--json"]
    assert prune_by_command(place, place / "out", *words) == 1
    out, err = capsys.readouterr()
    assert f"boom (the pruned model is saved in {place / 'out'})" in err.splitlines()[-1]
    result, report = json.loads(out), PruningReport.load(place / "out")
    assert result == {"output": str(place / "out"), **report.to_dict()}
    assert len(report.evaluations) == (what != "compare") and bool(report.latency) == (what == "push")


@pytest.mark.parametrize(("status", "code"), [(403, 2), (500, 1)])
def test_an_upload_that_is_refused_costs_no_result(status, code, place, capsys, hub):
    hub.fail("POST .*/commit/", times=99, status=status)
    assert prune_by_command(place, place / "out", "--push-to-hub", "me/small", "--json") == code
    out, err = capsys.readouterr()
    assert json.loads(out)["output"] == str(place / "out") and str(status) in err.splitlines()[-1]
    assert f"(the pruned model is saved in {place / 'out'})" in err.splitlines()[-1]


def test_in_python_a_model_without_a_report_is_kept(monkeypatch, tmp_path):
    pruner = OptinPruner(tiny_model(), word_tokenizer())
    with monkeypatch.context() as patch:
        patch.setattr("optimum_optin.pipeline.count_macs", fails)
        with pytest.raises(RuntimeError, match="boom"):
            pruner.prune(TEXTS, CONFIG)
    with pytest.raises(RuntimeError, match="the model is pruned_model, whose own save_pretrained saves it"):
        pruner.save_pretrained(tmp_path)
    pruner.pruned_model.save_pretrained(tmp_path)
    AutoModelForSequenceClassification.from_pretrained(tmp_path)
    pruner.prune(scores=pruner.scores, config=dataclasses.replace(CONFIG, compensation="none"), save_dir=tmp_path)


def test_in_python_the_model_is_kept(tmp_path, monkeypatch):
    pruner = OptinPruner(tiny_model(), word_tokenizer())

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(huggingface_hub.ModelCard, "save", full)
        with pytest.raises(NotSavedError, match="No space left.*pruned_model, and save_pretrained saves it to"):
            pruner.prune(TEXTS, CONFIG, save_dir=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    pruner.save_pretrained(tmp_path / "other")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "other").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in pruner.pruned_model.state_dict().items())


def test_a_source_that_goes_while_pruning_costs_no_model(tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense/LICENSE").write_text("mine")
    (tmp_path / "dense/vocab.txt").mkdir()
    pruner = OptinPruner.from_pretrained(tmp_path / "dense")
    shutil.rmtree(tmp_path / "dense")
    pruner.prune(TEXTS, CONFIG, save_dir=tmp_path / "out")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert not Path(tmp_path / "out/LICENSE").exists()
