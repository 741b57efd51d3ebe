"""A saved folder: pushed later it is what the pruner would have pushed, and people's text stays."""

import dataclasses
import json

import huggingface_hub
import pytest
from hub_server import Commit
from tiny import tiny_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.publishing.pruned_folders import push_folder, write_report

EVALUATION = {
    "task": "glue/sst2",
    "dataset": "nyu-mll/glue",
    "config": "sst2",
    "split": "validation",
    "samples": 24,
    "metrics": {"accuracy": {"dense": 0.9, "dense_error": 0.01, "pruned": 0.8, "pruned_error": 0.01}},
}


@pytest.fixture
def pruner(hub, tmp_path):
    """A pruner whose dense model came from the Hub, with its result in `tmp_path / "local"`."""
    tiny_model(num_labels=2).save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "dense" / "README.md").write_text("---\nlicense: mit\nlanguage: [de]\n---\n# Dense\n")
    huggingface_hub.HfApi().create_repo("me/dense")
    huggingface_hub.HfApi().upload_folder(repo_id="me/dense", folder_path=tmp_path / "dense")
    pruner = OptinPruner.from_pretrained("me/dense")
    pruner.prune(TEXTS, OptinConfig(flops=0.5, probes=8, remote_code=True))
    pruner.report = dataclasses.replace(pruner.report, evaluations=[EVALUATION])
    pruner.save_pretrained(tmp_path / "local")
    return pruner


def test_a_folder_pushed_later_is_what_the_pruner_pushes(pruner, hub, tmp_path):
    (tmp_path / "local" / ".git").mkdir()
    (tmp_path / "local" / ".git" / "HEAD").write_text("hidden")
    for revision in (None, "half"):
        pruner.push_to_hub("me/small", revision=revision)
        at = revision or "main"
        expected, title = hub.files("me/small", at), hub.commits("me/small", at)[-1]
        hub.repos.clear()
        commit = push_folder(tmp_path / "local", "me/small", revision=revision)
        assert hub.files("me/small", at) == expected
        assert commit.commit_message == title and len(hub.commits("me/small", at)) == 1


def test_more_figures_change_report_and_card_as_saving_them_would(pruner, tmp_path):
    pruner.report = dataclasses.replace(pruner.report, evaluations=[EVALUATION | {"task": "glue/rte"}])
    write_report(tmp_path / "local", pruner.report)
    assert PruningReport.load(tmp_path / "local") == pruner.report
    (tmp_path / "other").mkdir()
    pruner.save_pretrained(tmp_path / "other" / "local")
    assert _contents(tmp_path / "local") == _contents(tmp_path / "other" / "local")


def _contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("who", ["nobody", "on the Hub", "here", "both"])
def test_what_a_person_wrote_stays(pruner, hub, tmp_path, who):
    card = tmp_path / "local" / "README.md"
    push_folder(tmp_path / "local", "me/small")
    if who in ("on the Hub", "both"):
        branch = hub.repos["me/small"].branches["main"]
        text = hub.files("me/small")["README.md"].decode() + "\nWritten there.\n"
        branch.append(Commit("by hand", branch[-1].files | {"README.md": text.encode()}, branch[-1].oid))
    if who in ("here", "both"):
        card.write_text(card.read_text() + "\nWritten here.\n")
    pruner.report = dataclasses.replace(pruner.report, evaluations=[])
    write_report(tmp_path / "local", pruner.report)
    push_folder(tmp_path / "local", "me/small")
    pushed = hub.files("me/small")["README.md"].decode()
    assert 'from_pretrained("me/small")' in pushed and 'from_pretrained("local")' not in pushed
    assert pushed.count("## Load it") == 1 and "glue/sst2" not in pushed
    assert ("Written there." in pushed) == (who == "on the Hub")
    assert ("Written here." in pushed) == (who in ("here", "both"))  # the folder was edited on purpose
    assert ("# small" in pushed) == (who in ("nobody", "on the Hub"))


def test_a_folder_without_a_report_goes_as_it_is(hub, tmp_path):
    pruner = OptinPruner(tiny_model())
    pruner.prune([{"input_ids": list(range(5, 15))}] * 8, OptinConfig(probes=8))
    pruner.pruned_model.save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text("Mine.\n")
    push_folder(tmp_path, "me/small")
    assert hub.files("me/small") == _contents(tmp_path)
    assert json.loads(hub.files("me/small")["config.json"])["quantization_config"]["quant_method"] == "optimum_optin"


def test_no_network(hub, pruner, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ConnectionError, match="cannot push to me/small: http://127.0.0.1:9 does not answer"):
        push_folder(tmp_path / "local", "me/small")


def test_code_of_an_earlier_push_goes(pruner, hub):
    pruner.push_to_hub("me/small")
    assert "modeling_optin.py" in hub.files("me/small", "main")
    pruner.prune(TEXTS, OptinConfig(flops=0.5, probes=8))
    pruner.push_to_hub("me/small")
    assert "modeling_optin.py" not in hub.files("me/small", "main")


@pytest.mark.parametrize("text", ["{", "{}", '{"new_field": 1}'], ids=["cut off", "empty", "of a newer version"])
def test_a_damaged_report_is_named(text, tmp_path):
    (tmp_path / "optin_report.json").write_text(text)
    with pytest.raises(ValueError, match="optin_report.json is damaged"):
        PruningReport.load(tmp_path)
