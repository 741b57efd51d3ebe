"""Scores from disk: what was saved comes back, and nothing else is believed."""

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, Scores
from optimum_optin.architectures.registry import register_architecture
from optimum_optin.architectures.stacks import Stack, heads, neurons

CONFIG = OptinConfig(flops=0.5, probes=8, compensation="none", search="ranked")
HEADS, OTHERS, NEURONS = "output/layers.0.heads", "output/layers.1.heads", "output/layers.0.neurons"


@pytest.fixture(scope="module")
def pruner():
    return OptinPruner(tiny_model(), config=CONFIG)


@pytest.fixture
def folder(pruner, tmp_path):
    pruner.score(tiny_samples()).save_pretrained(tmp_path)
    return tmp_path


def _swap(tensors):
    tensors[HEADS], tensors[OTHERS] = tensors[OTHERS], tensors[HEADS]


def _set(name, value):
    return lambda tensors: tensors.update({name: value})


def _drop_output(tensors):
    for name in [name for name in tensors if name.startswith("output/")]:
        del tensors[name]


CHANGES = {
    "swapped": _swap,
    "dropped": lambda tensors: tensors.pop(HEADS),
    "a term dropped": _drop_output,
    "all dropped": lambda tensors: tensors.clear(),
    "another value": lambda tensors: tensors[NEURONS].__setitem__(0, 1.0),
    "nan": lambda tensors: tensors[NEURONS].__setitem__(0, torch.nan),
    "infinite": lambda tensors: tensors[NEURONS].__setitem__(0, torch.inf),
    "too large": lambda tensors: tensors[NEURONS].fill_(1e308),
    "negative": lambda tensors: tensors[NEURONS].neg_(),
    "boolean": _set(HEADS, torch.ones(4, dtype=torch.bool)),
    "whole numbers": _set(HEADS, torch.ones(4, dtype=torch.int64)),
    "complex": _set(HEADS, torch.ones(4, dtype=torch.complex64)),
    "eight bits": _set(HEADS, torch.ones(4).to(torch.float8_e4m3fn)),
    "half": _set(HEADS, torch.ones(4, dtype=torch.float16)),
    "longer": _set(HEADS, torch.ones(5)),
    "a matrix": _set(HEADS, torch.ones(4, 1)),
    "a number": _set(HEADS, torch.tensor(1.0)),
    "unknown group": _set("output/layers.7.heads", torch.ones(4)),
    "unknown term": _set("entropy/layers.0.heads", torch.ones(4)),
    "no term": _set("layers.0.heads", torch.ones(4)),
    "pairs of tokens": _set("output/layers.0.tokens", torch.ones(4)),
}
INVISIBLE = ("swapped", "a term dropped", "another value", "half")  # scores that might have been, but for the checksum


@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "none"])
@pytest.mark.parametrize("change", CHANGES)
def test_changed_scores_are_refused(change, checksum, pruner, folder):
    file, metadata = folder / "optin_scores.safetensors", folder / "optin_scores.json"
    tensors = load_file(file)
    CHANGES[change](tensors)
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, file)
    if not checksum:
        metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "sha256": None}))
    elif change in INVISIBLE:
        with pytest.raises(ValueError, match="not what was saved, by their checksum: score again"):
            Scores.from_pretrained(folder)
    if checksum or change not in INVISIBLE:
        for use in (pruner.plan, lambda scores: pruner.prune(scores=scores)):
            with pytest.raises(ValueError, match=r"scores"):
                use(Scores.from_pretrained(folder))


@pytest.mark.parametrize(
    "change",
    [
        {"tokens": 0},
        {"tokens": -3},
        {"tokens": 2.5},
        {"tokens": True},
        {"fingerprint": None},
        {"fingerprint": 7},
        {"seconds": -1},
        {"seconds": float("nan")},
        {"config": {"flops": 7}},
        {"config": None},
        {"batches": [1]},
        {"starts": []},
        {"merges": {}},
    ],
    ids=str,
)
@pytest.mark.parametrize("checksum", [True, False], ids=["checksum", "none"])
def test_changed_metadata_are_refused(change, checksum, folder):
    file = folder / "optin_scores.json"
    data = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps(data if checksum else {**data, "sha256": None}))
    with pytest.raises(ValueError, match=re.escape(f"the scores in {folder} are damaged, or of another version")):
        Scores.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "[]", "3", "null", '{"config"', "[" * 100_000, "\ud800"])
def test_metadata_of_another_form_are_refused(text, folder):
    (folder / "optin_scores.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match="are damaged, or of another version"):
        Scores.from_pretrained(folder)


def test_scores_of_earlier_versions_load_with_a_word(pruner, folder, caplog):
    before = Scores.from_pretrained(folder)
    file = folder / "optin_scores.json"
    data = json.loads(file.read_text())
    del data["sha256"]
    file.write_text(json.dumps(data))
    assert "checksum" not in caplog.text
    again = Scores.from_pretrained(folder)
    assert "without a checksum" in caplog.text
    assert pruner.plan(again) == pruner.plan(before)


@pytest.mark.parametrize("name", ["bert", "vit", "clip"])
@pytest.mark.parametrize("tokens", [65, 10**30])
def test_scores_for_samples_that_the_model_does_not_take_are_refused(name, tokens, monkeypatch):
    """They would cost something else, and fail after all the work."""
    model = tiny_model(name)
    pruner = OptinPruner(model, config=OptinConfig(probes=4))
    scores = replace(pruner.score(tiny_samples(8, model=model)), tokens=tokens)
    monkeypatch.setattr("optimum_optin.pruner.prune_model", None)
    for use in (pruner.plan, lambda scores: pruner.prune(scores=scores)):
        with pytest.raises(ValueError, match=rf"these scores are for samples .* does not take: tokens={tokens}"):
            use(scores)


def test_scores_that_were_changed_in_memory_are_refused(pruner):
    scores = pruner.score(tiny_samples())
    scores.terms["output"]["layers.0.neurons"][0] = torch.nan
    for use in (pruner.plan, lambda scores: pruner.prune(scores=scores)):
        with pytest.raises(ValueError, match=r"these scores: the output score of layers\.0\.neurons must be 48 finite"):
            use(scores)


@pytest.mark.parametrize("change", ["dropped", "nan", "unknown layer"])
def test_scores_of_tokens_are_checked(change, tmp_path):
    model = tiny_model("vit")
    pruner = OptinPruner(model, config=OptinConfig(probes=4, merging="auto"))
    scores = pruner.score(tiny_samples(8, model=model))
    by_layer = scores.merges["output"]
    if change == "dropped":
        del by_layer["layers.0"]
    elif change == "nan":
        by_layer["layers.0"][0] = torch.nan
    else:
        by_layer["layers.9"] = by_layer["layers.0"]
    with pytest.raises(ValueError, match="score of tokens after layers.0 must|no scores of tokens for"):
        pruner.plan(scores)


def test_two_sublayers_of_one_role_in_a_layer_are_refused():
    """Their masks and scores would go by one name."""
    twice = Stack("layers", (neurons(["up"], "down"), heads("a", "a.d", ["q"], "o"), neurons(["up2"], "down2")))
    with pytest.raises(ValueError, match="'twice': a layer of 'layers' must have one sublayer of each role"):
        register_architecture("twice", twice)
