"""Pushing to and loading from a Hub on the loopback, with the real client."""

import dataclasses
import json
import socket
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled
from tiny import tiny_batch, tiny_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertLMHeadModel, pipeline
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, Scores

CONFIG = OptinConfig(flops=0.5, probes=8)


@pytest.fixture(scope="module")
def pruners():
    """Two pruners of different dense models that have pruned."""
    made = []
    for seed in (0, 1):
        pruner = OptinPruner(tiny_model(seed=seed), word_tokenizer())
        pruner.prune(TEXTS, CONFIG)
        made.append(pruner)
    return made


def _logits(model):
    with torch.no_grad():
        return model.eval()(**tiny_batch(model)).logits


def _assert_same(model, other):
    torch.testing.assert_close(_logits(model), _logits(other), atol=0, rtol=0)


def _load(repo_id, **kwargs):
    return AutoModelForSequenceClassification.from_pretrained(repo_id, **kwargs)


def test_one_push_is_one_commit_that_loads_with_plain_transformers(hub, pruners):
    commit = pruners[0].push_to_hub("me/small")
    assert hub.commits("me/small") == [commit.commit_message]
    assert commit.oid == hub.repos["me/small"].find("main").oid
    assert sorted(hub.files("me/small")) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "optin_report.json",
        "optin_tensors.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    _assert_same(_load("me/small"), pruners[0].pruned_model)
    assert AutoTokenizer.from_pretrained("me/small")(TEXTS[0]) == word_tokenizer()(TEXTS[0])
    assert 'from_pretrained("me/small")' in hub.files("me/small")["README.md"].decode()


def test_the_last_push_wins(hub, pruners):
    pruners[0].push_to_hub("small", commit_message="first")  # without an owner: the token's
    pruners[1].push_to_hub("me/small", commit_message="second")
    assert hub.commits("me/small") == ["first", "second"]
    _assert_same(_load("me/small"), pruners[1].pruned_model)
    first = hub.repos["me/small"].branches["main"][1].oid
    _assert_same(_load("me/small", revision=first), pruners[0].pruned_model)


def test_weights_of_another_layout_go(hub, pruners):
    pruners[0].push_to_hub("me/small")
    head = hub.repos["me/small"].find("main").files
    head.update({"model-00001-of-00002.safetensors": b"", "model.safetensors.index.json": b"{}", "notes.txt": b"mine"})
    pruners[1].push_to_hub("me/small")
    assert {"notes.txt", "model.safetensors"} <= set(hub.files("me/small"))
    assert not [name for name in hub.files("me/small") if "-of-" in name or "index" in name]


def test_the_plain_push_of_a_pruned_model_keeps_its_structure(hub, pruners):
    pruners[0].pruned_model.push_to_hub("me/plain")
    loaded = _load("me/plain")
    _assert_same(loaded, pruners[0].pruned_model)
    loaded.push_to_hub("me/again")
    _assert_same(_load("me/again"), pruners[0].pruned_model)


def test_remote_code_comes_from_the_hub(hub, pruners, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    pruner = OptinPruner(pruners[0].model, word_tokenizer())
    pruner.prune(TEXTS, dataclasses.replace(CONFIG, remote_code=True))
    pruner.push_to_hub("me/small")
    assert "modeling_optin.py" in hub.files("me/small")
    loaded = _load("me/small", trust_remote_code=True)
    assert type(loaded).__module__.startswith("transformers_modules.me.small.")
    _assert_same(loaded, pruner.pruned_model)
    classify = pipeline("text-classification", model="me/small", trust_remote_code=True)
    assert type(classify.model).__module__ == type(loaded).__module__ and len(classify(TEXTS)) == len(TEXTS)
    loaded.push_to_hub("me/again")  # the code goes along
    _assert_same(_load("me/again", trust_remote_code=True), pruner.pruned_model)
    _assert_same(_load("me/small"), pruner.pruned_model)


def test_private(hub, pruners, monkeypatch):
    pruners[0].push_to_hub("me/secret", private=True, token="hf_me")
    monkeypatch.delenv("HF_TOKEN")
    for token in (None, "hf_other"):
        with pytest.raises(OSError, match=r"me/secret is not a local folder.*\n.*private repository"):
            OptinPruner.from_pretrained("me/secret", token=token)
    _assert_same(_load("me/secret", token="hf_me"), pruners[0].pruned_model)
    pruner = OptinPruner.from_pretrained("me/secret", token="hf_me")
    _assert_same(pruner.model, pruners[0].pruned_model)
    assert pruner.processor(TEXTS[0]) == word_tokenizer()(TEXTS[0])


def test_a_repository_that_is_not_there(hub):
    with pytest.raises(OSError, match="me/nowhere is not a local folder and is not a valid model identifier"):
        OptinPruner.from_pretrained("me/nowhere")


def test_revision_cache_and_subfolder(hub, pruners, tmp_path):
    pruners[0].push_to_hub("me/small", revision="half")
    assert hub.commits("me/small") == [] and len(hub.commits("me/small", "half")) == 1
    pruners[0].push_to_hub("me/small", revision="half", commit_message="again")  # the branch is there
    pruner = OptinPruner.from_pretrained("me/small", revision="half", cache_dir=tmp_path / "mine")
    _assert_same(pruner.model, pruners[0].pruned_model)
    assert (tmp_path / "mine" / "models--me--small").is_dir() and not (tmp_path / "cache").exists()
    assert 'from_pretrained("me/small", revision="half")' in hub.files("me/small", "half")["README.md"].decode()

    pruners[1].save_pretrained(tmp_path / "out")
    huggingface_hub.HfApi().upload_folder(repo_id="me/small", folder_path=tmp_path / "out", path_in_repo="deep/er")
    pruner = OptinPruner.from_pretrained("me/small", subfolder="deep/er")
    _assert_same(pruner.model, pruners[1].pruned_model)
    assert pruner.processor is not None


def test_a_pull_request_to_somebody_else(hub, pruners):
    pruners[0].push_to_hub("me/small")
    commit = pruners[1].push_to_hub("me/small", create_pr=True, token="hf_other")
    assert commit.pr_revision == "refs/pr/1"
    _assert_same(_load("me/small"), pruners[0].pruned_model)
    _assert_same(_load("me/small", revision=commit.pr_revision), pruners[1].pruned_model)
    with pytest.raises(HfHubHTTPError, match="403"):
        pruners[1].push_to_hub("me/small", token="hf_other")


def test_scores_travel_along(hub, pruners):
    scores = pruners[0].score(TEXTS, CONFIG)
    pruners[0].push_to_hub("me/small", scores=scores)
    assert len(hub.commits("me/small")) == 1
    loaded = Scores.from_pretrained("me/small", revision="main", token="hf_me")
    again = OptinPruner(pruners[0].model, word_tokenizer()).prune(TEXTS, scores=loaded)
    _assert_same(again, pruners[0].pruned_model)
    with pytest.raises(ValueError, match="another model"):
        pruners[1].push_to_hub("me/other", scores=scores)
    with pytest.raises(FileNotFoundError, match="me/nowhere is no folder, and cannot be read from the Hub"):
        Scores.from_pretrained("me/nowhere")
    pruners[1].push_to_hub("me/without")
    with pytest.raises(FileNotFoundError, match="holds no scores"):
        Scores.from_pretrained("me/without")


def test_a_commit_that_fails_leaves_the_last_one(hub, pruners):
    pruners[0].push_to_hub("me/small")
    hub.fail("POST .*/commit/", status=500)
    with pytest.raises(HfHubHTTPError, match="500"):
        pruners[1].push_to_hub("me/small")
    assert len(hub.commits("me/small")) == 1
    _assert_same(_load("me/small"), pruners[0].pruned_model)


def test_an_upload_that_breaks_off_leaves_the_last_commit(hub, pruners):
    pruners[0].push_to_hub("me/small")
    hub.drop("PUT /storage/", times=99)
    with pytest.raises(RuntimeError, match=r"model\.safetensors"):
        pruners[1].push_to_hub("me/small")
    assert len(hub.commits("me/small")) == 1
    _assert_same(_load("me/small"), pruners[0].pruned_model)


def test_the_client_retries_what_passes(hub, pruners):
    hub.fail("POST .*/preupload/", times=2)
    hub.fail("PUT /storage/", status=503)
    hub.drop("PUT /storage/")
    pruners[0].push_to_hub("me/small")
    assert len(hub.commits("me/small")) == 1
    hub.drop("GET /storage/")  # the download goes on from the middle
    _assert_same(_load("me/small"), pruners[0].pruned_model)
    assert sum(request.startswith("GET /storage/") for request in hub.requests) == 2


def test_a_card_that_cannot_be_read_is_not_overwritten(hub, pruners):
    pruners[0].push_to_hub("me/small")
    hub.fail("GET .*README.md", times=99)
    with pytest.raises(HfHubHTTPError, match="500"):
        pruners[0].push_to_hub("me/small")
    assert len(hub.commits("me/small")) == 1


def test_a_full_disk_commits_nothing(hub, pruners, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub.ModelCard, "save", full)
    with pytest.raises(OSError, match="No space left"):
        pruners[0].push_to_hub("me/small")
    assert hub.commits("me/small") == []


@pytest.mark.parametrize("repo_id", ["me/small/er", "me/sm all", "../small", "", "me/small.git", None, 7])
def test_a_wrong_repo_id_is_refused_before_anything_is_sent(hub, pruners, repo_id):
    with pytest.raises(ValueError, match="repo_id=.* is not a name on the Hub: give 'user/name'"):
        pruners[0].push_to_hub(repo_id)
    assert hub.requests == []


def test_what_else_is_refused_before_anything_is_sent(hub, pruners, monkeypatch):
    with pytest.raises(ValueError, match="create_pr=True .* revision='half'"):
        pruners[0].push_to_hub("me/small", revision="half", create_pr=True)
    for token in (None, False, True):
        with monkeypatch.context() as patch:
            patch.delenv("HF_TOKEN")
            with pytest.raises(LocalTokenNotFoundError, match="hf auth login"):
                pruners[0].push_to_hub("me/small", token=token)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OfflineModeIsEnabled, match="HF_HUB_OFFLINE.*save_pretrained"):
        pruners[0].push_to_hub("me/small")
    with pytest.raises(RuntimeError, match="nothing was pruned"):
        OptinPruner(tiny_model()).push_to_hub("me/small")
    assert hub.requests == []


def test_of_several_processes_only_the_main_one_uploads(hub, pruners, monkeypatch):
    monkeypatch.setattr("optimum_optin.outcome.is_main", lambda: False)
    assert pruners[0].push_to_hub("me/small") is None
    assert hub.requests == []


def test_a_generation_config_goes_along(hub):
    pruner = OptinPruner(tiny_model(model_class=BertLMHeadModel))
    pruner.model.generation_config.max_new_tokens = 7
    pruner.prune([{"input_ids": list(range(5, 15))}] * 8, CONFIG)
    pruner.push_to_hub("me/writer")
    assert json.loads(hub.files("me/writer")["generation_config.json"])["max_new_tokens"] == 7


def test_a_wrong_token(hub, pruners):
    with pytest.raises(HfHubHTTPError, match="401"):
        pruners[0].push_to_hub("me/small", token="hf_wrong")


def test_no_network(hub, pruners, monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(ConnectionError, match="127.0.0.1.* does not answer .*save_pretrained keeps it"):
        pruners[0].push_to_hub("me/small")


def test_the_card_inherits_from_the_base_on_the_hub(hub, tmp_path, monkeypatch):
    tiny_model().save_pretrained(tmp_path)
    metadata = "license: mit\nlanguage: [de]\ntags: [pytorch, news]"
    (tmp_path / "README.md").write_text(f"---\n{metadata}\n---\n# Dense\n")
    api = huggingface_hub.HfApi()
    api.create_repo("me/dense")
    dense = api.upload_folder(repo_id="me/dense", folder_path=tmp_path)

    pruner = OptinPruner.from_pretrained("me/dense", processor=word_tokenizer())
    pruner.prune(TEXTS, CONFIG)
    pruner.push_to_hub("me/small")
    card = huggingface_hub.ModelCard.load("me/small")
    assert (card.data.base_model, card.data.base_model_relation) == ("me/dense", "quantized")
    assert (card.data.license, card.data.language) == ("mit", ["de"])
    assert "news" in card.data.tags and "pytorch" not in card.data.tags
    assert f'from_pretrained("me/dense", task="text-classification", revision="{dense.oid}")' in card.text
    assert json.loads(hub.files("me/small")["optin_report.json"])["calibration"] == {"samples": len(TEXTS)}

    by_hand = OptinPruner(_load("me/dense"))  # from the Hub, but nobody knows which commit
    by_hand.prune([{"input_ids": list(range(5, 15))}] * 8, CONFIG)
    card = by_hand.create_model_card()
    assert (card.data.base_model, card.data.license) == ("me/dense", "mit")
    assert 'from_pretrained("me/dense", task="text-classification")' in card.text

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    hub.fail("(GET|HEAD) /me/dense", times=99)
    data = pruner.create_model_card("me/small").data
    assert (data.base_model, data.license) == ("me/dense", None)
