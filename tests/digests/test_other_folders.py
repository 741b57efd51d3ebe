"""Digests of plain modules, and hashes of models whose layout is uniform."""

import copy
import json
import shutil

import pytest
import torch
from folders import change_tensors, entry_of, without_digest
from tiny import random_masks, tiny_model, tiny_samples
from toys import Transformer, perturbed, token_ids

from optimum_optin import OptinConfig, OptinPruner, find_groups, load_pruned
from optimum_optin.commands.run import run
from optimum_optin.editing.surgery import rewrite
from optimum_optin.plain_modules.saving import save_module
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of


def _cut(module, seed=0):
    module = copy.deepcopy(module)
    groups = find_groups(module, token_ids())
    masks = random_masks(groups, seed)
    rewrite(module, groups, masks)
    record_structure(module, structure_of(groups, masks), groups)
    return module


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two folders with prunings of one module that keep equally many units."""
    dense, places = perturbed(Transformer()), [tmp_path_factory.mktemp(f"module{seed}") for seed in (0, 1)]
    for seed, place in enumerate(places):
        save_module(_cut(dense, seed), place, dense)
    return places


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved[0], tmp_path / "module")


def test_a_changed_structure_is_refused(folder):
    entry, write = entry_of(folder)
    kept = entry["structure"]["layers.0.neurons"]
    kept["kept"] = "0-23" if kept["kept"] != "0-23" else "1-24"
    write()
    with pytest.raises(ValueError, match=r"optin_structure\.json was changed since the model was saved"):
        load_pruned(Transformer, folder)
    del entry["digest"]
    write()
    with pytest.raises(ValueError, match=r"optin_structure\.json does not say how the model in model\.safetensors"):
        load_pruned(Transformer, folder)
    load_pruned(Transformer, without_digest(folder))


def test_weights_of_another_pruning_are_refused(saved, folder):
    shutil.copy(saved[1] / "model.safetensors", folder)
    with pytest.raises(ValueError, match="is of another pruning"):
        load_pruned(Transformer, folder)


def test_tensors_that_changed_are_named(folder, capsys):
    assert run("info", [str(folder), "--verify"]) == 0

    def halved(tensors):
        tensors["head.bias"] = tensors["head.bias"].half()

    def other(tensors):
        tensors["head.bias"] = tensors["head.bias"].float() + 1

    change_tensors(folder, halved)
    with pytest.raises(ValueError, match=r"'head\.bias' is F16 of shape \(5,\) and was F32 of shape \(5,\)"):
        load_pruned(Transformer, folder)
    change_tensors(folder, other)
    load_pruned(Transformer, folder)
    assert run("info", [str(folder), "--verify"]) == 2
    assert "'head.bias' has other numbers" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["more", "digest"])
def test_unknown_keys_are_refused(text, folder):
    file = folder / "optin_structure.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {text: 1}))
    with pytest.raises(ValueError, match=f"must hold how_to_load, class, pruned alone, got {text}"):
        load_pruned(Transformer, folder)


def test_a_uniform_model_has_hashes_and_nothing_else_of_ours(tmp_path, capsys):
    pruner = OptinPruner(tiny_model())
    config = OptinConfig(flops=0.8, probes=4, layout="uniform", compensation="none", search="ranked")
    pruner.prune(tiny_samples(), config, save_dir=tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert run("info", [str(tmp_path), "--verify"]) == 0
    assert "verified: 57 tensors hold what was saved" in capsys.readouterr().out
    change_tensors(tmp_path, lambda tensors: tensors["classifier.bias"].add_(torch.nan))
    assert run("info", [str(tmp_path), "--verify"]) == 2
    assert "'classifier.bias' has other numbers, some of them NaN" in capsys.readouterr().err


def test_an_entry_that_is_gone_is_seen_by_verification(tmp_path, capsys):
    """transformers takes such a folder for a dense model's, and asks nobody."""
    pruner = OptinPruner(tiny_model())
    config = OptinConfig(flops=0.8, probes=4, compensation="none", search="ranked")
    pruner.prune(tiny_samples(), config, save_dir=tmp_path)
    assert run("info", [str(tmp_path), "--verify"]) == 0
    file = tmp_path / "config.json"
    data = json.loads(file.read_text())
    del data["quantization_config"]
    file.write_text(json.dumps(data))
    assert run("info", [str(tmp_path), "--verify"]) == 2
    assert "its quantization_config is gone" in capsys.readouterr().err
