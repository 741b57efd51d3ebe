"""The model card: what it says is what was measured, its code runs, and people's text stays."""

import dataclasses
import re

import datasets
import huggingface_hub
import pytest
import torch
from huggingface_hub import EvalResult, ModelCard
from tiny import tiny_batch, tiny_model, tiny_samples
from transformers import AutoModelForSequenceClassification
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.publishing.card import BEGIN, END

CONFIG = OptinConfig(flops=0.5, probes=8, seed=3)
EVALUATIONS = [
    {
        "task": "glue/mnli",
        "dataset": "nyu-mll/glue",
        "config": "mnli",
        "split": split,
        "samples": 200,
        "metrics": {
            "accuracy": {"dense": 0.9125, "dense_error": 0.0101, "pruned": accuracy, "pruned_error": 0.0112},
            "f1": {"dense": 0.91, "dense_error": None, "pruned": 0.9, "pruned_error": None},
        },
    }
    for split, accuracy in (("validation_matched", 0.9025), ("validation_mismatched", 0.8975))
]
LATENCY = {
    "device": "cpu",
    "hardware": "AMD EPYC",
    "threads": 2,
    "dtype": "float32",
    "batch_size": 8,
    "tokens": 93,
    "repeats": 15,
    "dense_ms": 210.04,
    "pruned_ms": 130.0,
    "speedup": 1.615,
}


@pytest.fixture
def pruner():
    pruner = OptinPruner(tiny_model(), word_tokenizer())
    pruner.prune(TEXTS, CONFIG)
    return pruner


def _measured(pruner):
    pruner.report = dataclasses.replace(pruner.report, evaluations=EVALUATIONS, latency=LATENCY)


def _code(card):
    return re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)


def test_the_card_beside_a_saved_model_parses(pruner, tmp_path):
    _measured(pruner)
    pruner.save_pretrained(tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.text.lstrip().startswith("# small\n")
    assert (card.data.library_name, card.data.pipeline_tag) == ("transformers", "text-classification")
    assert {"optimum-optin", "structured-pruning"} <= set(card.data.tags)
    assert card.data.metrics == ["accuracy", "f1"]
    assert card.data.base_model is None and "base_model_relation" not in card.data
    expected = EvalResult(
        task_type="text-classification",
        dataset_type="nyu-mll/glue",
        dataset_name="glue/mnli",
        dataset_config="mnli",
        dataset_split="validation_mismatched",
        metric_type="accuracy",
        metric_name="accuracy (optimum-optin)",
        metric_value=0.8975,
    )
    assert len(card.data.eval_results) == 4 and expected in card.data.eval_results
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()


def test_its_figures_are_those_of_the_report(pruner, tmp_path):
    _measured(pruner)
    pruner.save_pretrained(tmp_path / "small")
    text = ModelCard.load(tmp_path / "small" / "README.md").text
    report = PruningReport.load(tmp_path / "small")
    size = (tmp_path / "small" / "model.safetensors").stat().st_size
    for row in (
        f"| MACs of the transformer layers |  | asked 50.0% | {report.flops_achieved:.1%} |",
        f"| parameters | {report.params_dense / 1e6:.2f}M | {report.params_pruned / 1e6:.2f}M |",
        f"| weights on disk | {4 * report.params_dense / 1e6:.2f} MB | {size / 1e6:.2f} MB |",
        "| latency, batch of 8 x 93 tokens | 210.0 ms | 130.0 ms | 1.61x as fast |",
        "| glue/mnli | validation_matched | 200 | accuracy | 0.9125 ± 0.01 | 0.9025 ± 0.011 |",
        "| glue/mnli | validation_mismatched | 200 | f1 | 0.91 | 0.9 |",
    ):
        assert row in text
    assert "AMD EPYC (cpu), 2 threads, float32" in text
    assert f"Calibration: {len(TEXTS)} samples without their labels, {report.tokens} tokens on average" in text
    for layer, roles in report.layers.items():
        heads, neurons = roles["heads"], roles["neurons"]
        row = next(line for line in text.splitlines() if line.startswith(f"| {layer} |"))
        assert f"| {heads['kept']} / {heads['units']} |" in row and f"| {neurons['kept']} / {neurons['units']} |" in row
        assert row.count("█") == sum(round(16 * count["kept"] / count["units"]) for count in (heads, neurons))


def test_what_was_not_measured_is_not_in_it(pruner):
    pruner.report = dataclasses.replace(pruner.report, divergence=None, calibration=None)
    card = pruner.create_model_card("me/small")
    measured = card.text.split("## Limits")[0]
    for word in ("latency", "on disk", "ccuracy", "divergence", "Calibration:", "None", "nan"):
        assert word not in measured, word
    assert not {"metrics", "datasets", "model-index", "license", "language"} & set(card.data.to_dict())
    assert 'AutoTokenizer.from_pretrained("me/small")' in card.text


def test_a_model_made_in_memory_inherits_from_nowhere(pruner, tmp_path, monkeypatch):
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n")
    monkeypatch.chdir(tmp_path)
    assert pruner.create_model_card().data.license is None


def test_nothing_pruned():
    with pytest.raises(RuntimeError, match="call prune"):
        OptinPruner(tiny_model()).create_model_card()


def test_the_code_that_loads_it_runs(pruner, tmp_path, monkeypatch):
    pruner.save_pretrained(tmp_path / "small")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(_code(ModelCard.load("small/README.md"))[0], names)
    batch = tiny_batch(pruner.model)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](**batch).logits, pruner.pruned_model(**batch).logits, atol=0, rtol=0)
    assert names["tokenizer"](TEXTS) == word_tokenizer()(TEXTS)


def test_the_code_that_made_it_makes_it_again(tmp_path, monkeypatch):
    def load(name, config, split):
        assert (name, config, split) == ("nyu-mll/glue", "sst2", "train")
        return datasets.Dataset.from_dict({"sentence": TEXTS})

    monkeypatch.setattr(datasets, "load_dataset", load)
    tiny_model().save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    pruner = OptinPruner.from_pretrained(tmp_path / "dense")
    calibration = pruner.get_calibration_dataset("nyu-mll/glue", "sst2", num_samples=16, seed=5)
    pruner.prune(calibration, CONFIG, save_dir=tmp_path / "small")
    card = ModelCard.load(tmp_path / "small" / "README.md")
    assert card.data.datasets == ["nyu-mll/glue"]
    assert "16 samples of `nyu-mll/glue` `sst2` `train`" in card.text
    assert str(tmp_path) not in str(card)  # where things are on somebody's machine is nobody's business

    (tmp_path / "again").mkdir()
    monkeypatch.chdir(tmp_path / "again")
    exec(_code(card)[1].replace("path/to/the/dense/model", str(tmp_path / "dense")), names := {})
    batch = tiny_batch(pruner.model)
    with torch.no_grad():
        torch.testing.assert_close(names["model"](**batch).logits, pruner.pruned_model(**batch).logits, atol=0, rtol=0)

    pruner.prune(TEXTS, CONFIG)  # other data: their name is not known
    assert pruner.report.calibration == {"samples": len(TEXTS)}
    assert "sst2" not in pruner.create_model_card().text


def test_an_existing_card_is_updated(pruner, tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    mine = "language: fr\nlicense: mit\nwidget:\n- text: a \\d cat\ntags: [cats]\nmetrics: accuracy\n"
    theirs = "name: x\n  results:\n  - task: {type: text-classification}\n    dataset: {name: mine, type: mine}\n"
    results = f"model-index:\n- {theirs}    metrics: [{{type: accuracy, value: 0.5, name: by hand}}]\n"
    (folder / "README.md").write_text(f"---\n{mine}{results}---\n# Cats\n\nWhat I found: \\1 cats.\n")
    _measured(pruner)
    pruner.save_pretrained(folder)
    first = (folder / "README.md").read_text()
    edited = first.replace("# Cats", "# More cats").rstrip() + "\n\nThanks to everyone.\n"
    (folder / "README.md").write_text(edited)
    pruner.report = dataclasses.replace(pruner.report, evaluations=EVALUATIONS[:1])
    pruner.save_pretrained(folder)

    card = ModelCard.load(folder / "README.md")
    assert card.text.startswith("# More cats\n\nWhat I found: \\1 cats.\n\n" + BEGIN)
    assert card.text.endswith(END + "\n\nThanks to everyone.\n")
    assert card.text.count(BEGIN) == card.text.count("## Load it") == 1
    assert (card.data.language, card.data.license, card.data.widget) == ("fr", "mit", [{"text": "a \\d cat"}])
    assert card.data.tags[0] == "cats" and "pruning" in card.data.tags
    assert card.data.metrics == ["accuracy", "f1"]
    splits = [(result.metric_name, result.dataset_split) for result in card.data.eval_results]
    assert splits == [
        ("by hand", None),
        ("accuracy (optimum-optin)", "validation_matched"),
        ("f1 (optimum-optin)", "validation_matched"),
    ]
    assert (folder / "README.md").read_text().startswith("---\nlanguage: fr\nlicense: mit\nwidget:\n")


@pytest.mark.parametrize(
    "metadata",
    ["license: [mit", "- a\n- list", "license: mit\nmodel-index:\n- 7", "1: 2"],
    ids=["yaml", "list", "model-index", "keys"],
)
def test_broken_metadata_are_kept_as_a_comment(pruner, tmp_path, metadata, monkeypatch):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "README.md").write_text(f"---\n{metadata}\n---\n# Mine\n")
    pruner.save_pretrained(folder)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.license is None
    assert f"<!-- metadata that could not be read:\n{metadata}\n-->\n# Mine\n\n{BEGIN}" in card.text


def test_a_card_without_metadata(pruner, tmp_path):
    (tmp_path / "README.md").write_text("Only text.\n")
    pruner.save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.text.startswith("Only text.\n\n" + BEGIN)
    assert card.data.library_name == "transformers"


@pytest.mark.parametrize(
    "text",
    [
        f"{BEGIN}\nold, without an end\n\nMine.\n",
        f"Mine.\n{END}\n\nMore.\n",
        f"{END}\nMine.\n\n{BEGIN}\nMore.\n",
        f"{BEGIN}\nMine.\n{BEGIN}\nMore.\n",
        f"It has a part that begins with `{BEGIN}`.\n\nMine.\n",
    ],
    ids=["no end", "no beginning", "swapped", "two beginnings", "quoted"],
)
def test_text_beside_damaged_marks_stays(pruner, tmp_path, text):
    (tmp_path / "README.md").write_text(text)
    for _ in range(3):
        pruner.save_pretrained(tmp_path)
        now = ModelCard.load(tmp_path / "README.md").text
        assert now.startswith(text.rstrip()) and now.count("## Load it") == 1


def test_a_second_part_goes(pruner, tmp_path):
    (tmp_path / "README.md").write_text(f"One.\n\n{BEGIN}\nold\n{END}\n\nTwo.\n\n{BEGIN}\nolder\n{END}\n\nThree.\n")
    pruner.save_pretrained(tmp_path)
    text = ModelCard.load(tmp_path / "README.md").text
    assert text.count(BEGIN) == text.count(END) == text.count("## Load it") == 1 and "old" not in text.split(END)[1]
    assert [line for line in text.split("\n") if line in ("One.", "Two.", "Three.")] == ["One.", "Two.", "Three."]


def test_it_inherits_from_the_card_of_a_local_base(tmp_path):
    base = tmp_path / "base"
    tiny_model(base=True).save_pretrained(base)
    results = "model-index:\n- name: x\n  results: []\n"
    inherited = "language: de\nlicense: other\nlicense_name: ours\nbase_model: org/ancestor\ndatasets: imdb\n"
    (base / "README.md").write_text(f"---\n{inherited}tags: [news, onnx]\n{results}---\nBase\n")
    pruner = OptinPruner.from_pretrained(base, processor=word_tokenizer())
    pruner.prune(TEXTS, CONFIG, save_dir=tmp_path / "small")
    data = ModelCard.load(tmp_path / "small" / "README.md").data
    assert (data.language, data.license, data.license_name, data.license_link) == ("de", "other", "ours", None)
    assert (data.base_model, data.base_model_relation) == ("org/ancestor", "quantized")
    assert data.datasets == ["imdb"] and data.tags[-1] == "news" and data.pipeline_tag == "feature-extraction"
    assert data.eval_results is None  # those were the dense model's


@pytest.mark.parametrize("there", [False, True], ids=["new", "existing"])
def test_a_full_disk_leaves_nothing_half_written(pruner, tmp_path, monkeypatch, there):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    folder = tmp_path / "small"
    if there:
        pruner.save_pretrained(folder)
    before = {path.name: path.read_bytes() for path in folder.rglob("*")}
    pruner.prune(TEXTS, CONFIG, flops=0.3)
    monkeypatch.setattr(huggingface_hub.ModelCard, "save", full)
    with pytest.raises(OSError, match="No space left"):
        pruner.save_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == (["small"] if there else [])
    if there:
        AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("way", ["remote_code", "uniform"])
def test_it_says_how_to_load_without_the_package(way, tmp_path):
    config = {"remote_code": {"remote_code": True}, "uniform": {"layout": "uniform", "flops": 0.8}}[way]
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(), dataclasses.replace(CONFIG, **config), save_dir=tmp_path / "small")
    text = ModelCard.load(tmp_path / "small" / "README.md").text
    assert ("trust_remote_code=True" in text) == (way == "remote_code")
    assert ("import optimum_optin" in text) == (way == "remote_code")
