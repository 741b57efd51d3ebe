"""Folders with remote code: they load in an environment without the package, and beside it."""

import ast
import copy
import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TINY, load, output_of, random_masks, tiny_batch, tiny_model, tiny_samples
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaModel,
)

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.modalities import IMAGES, PAIRS, modality_of
from optimum_optin.publishing.excerpt import excerpt
from optimum_optin.publishing.remote_code import write_remote_code
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

LOAD_ALONE = Path(__file__).parents[1].joinpath("load_alone.py")
FORMAT_1 = LOAD_ALONE.parent / "fixtures/format_1"
LOADING = LOAD_ALONE.parents[1] / "docs/source/guides/loading.mdx"
# No padding: one batch of text for all families, and one of images.
BATCH = {name: value[:1] for name, value in tiny_batch(tiny_model()).items()}
PIXELS = {name: value[:1] for name, value in tiny_batch(tiny_model("vit")).items()}


def batch_for(model):
    """The part of the saved batch that a model takes."""
    if modality_of(model) is PAIRS:
        return BATCH | PIXELS
    return PIXELS if modality_of(model) is IMAGES else BATCH


def base_of(model):
    """The model without its head, as AutoModel makes it."""
    return model if type(model) is TINY[model.config.model_type][1] else model.base_model


def load_alone(mode, folders, place):
    """What a process of its own computes with saved models; see `load_alone.py`."""
    save_file(BATCH | PIXELS, place / "batch.safetensors")
    results = place / f"{mode}.safetensors"
    environment = os.environ | {"HF_MODULES_CACHE": str(place / f"modules-{mode}"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(LOAD_ALONE.parents[1]) if mode == "late" else ""
    python = _without_the_package(place / "venv") if mode == "without" else sys.executable
    arguments = [python, LOAD_ALONE, mode, results, place / "batch.safetensors", *folders]
    done = subprocess.run(arguments, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return load_file(results)


def _without_the_package(folder):
    """Python of a new virtual environment that has what this one has, but for packages installed from a checkout."""
    venv.create(folder, symlinks=True, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    ours = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "dependencies.pth").write_text("\n".join(ours))
    return folder / "bin" / "python"


def _pruned(model_type):
    """A model that lost heads and neurons, in one layer all its heads, in another all its neurons."""
    model = tiny_model(model_type)
    groups = find_groups(model)
    masks = random_masks(groups)
    for key, mask in masks.items():
        if key.endswith((".1.heads", ".2.neurons")):
            mask[:] = False
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    return model


# The code knows no architecture: one of each kind of class, tables and modules that units are cut from.
NAMED = ["beit with a shared bias", "beit with both biases", "bert", "clip", "clip_vision_model", "dinov2 with SwiGLU"]
NAMED += ["dinov3 with a gated MLP", "distilbert", "electra", "modernbert", "mpnet", "roberta"]
NAMED += ["siglip, a classifier of images", "swin", "swinv2", "vit"]
# With the package, classes are what they are without it: one of each kind of folder.
LATE = ["bert", "beit with a shared bias", "clip", "dinov2 with SwiGLU", "modernbert", "mpnet", "swin"]
LOADED = [("without", name) for name in NAMED] + [("late", name) for name in LATE]


@pytest.fixture(scope="module")
def models():
    return {model_type: _pruned(model_type) for model_type in NAMED}


@pytest.fixture(scope="module")
def loaded(models, tmp_path_factory):
    """Results of a process without the package, and of one that imports it after the first folder's code."""
    found = {}
    for mode, names in (("without", NAMED), ("late", LATE)):
        place = tmp_path_factory.mktemp(mode)
        for model_type in names:
            models[model_type].save_pretrained(place / model_type)
            write_remote_code(place / model_type)
        found[mode] = place, load_alone(mode, [place / model_type for model_type in names], place)
    return found


@pytest.mark.parametrize(("mode", "model_type"), LOADED, ids=map(" ".join, LOADED))
def test_loaded_elsewhere_it_computes_the_same(mode, model_type, models, loaded):
    place, results = loaded[mode]
    model = models[model_type]
    if type(model).__name__.endswith("WithProjection"):  # no Auto class makes these
        model = model.base_model
    batch = batch_for(model)
    logits = output_of(model, batch)
    torch.testing.assert_close(results[f"{model_type}.logits"], logits, atol=1e-6, rtol=0)
    if f"{model_type}.hidden" in results:
        with torch.no_grad():
            hidden = base_of(model)(**batch)[0]
        torch.testing.assert_close(results[f"{model_type}.hidden"], hidden, atol=1e-6, rtol=0)
    torch.testing.assert_close(results[f"{model_type}.half"], logits, atol=0.1, rtol=0.1)

    tuned = results[f"{model_type}.tuned"]
    assert (tuned - logits).abs().max() > 1e-4
    torch.testing.assert_close(results[f"{model_type}.tuned again"], tuned, atol=1e-6, rtol=0)
    here = load(model, place / model_type / "tuned")  # by the package
    torch.testing.assert_close(output_of(here, batch), tuned, atol=1e-6, rtol=0)
    assert type(here) is type(model)


def test_saving_an_ordinary_class_again_names_no_code_that_is_not_there(models, tmp_path):
    models["bert"].save_pretrained(tmp_path / "first")
    write_remote_code(tmp_path / "first")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "first")
    model.save_pretrained(tmp_path / "second")
    assert "auto_map" not in json.loads((tmp_path / "second" / "config.json").read_text())
    assert not (tmp_path / "second" / "modeling_optin.py").exists()


def _cut_again(model):
    groups = find_groups(model)
    masks = random_masks(groups, seed=1)
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    with torch.no_grad():
        return model(**BATCH).logits


@pytest.mark.parametrize("model_type", ["bert", "mpnet"])
def test_a_model_of_remote_code_can_be_pruned_again(model_type, models, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", sys.path.copy())
    models[model_type].save_pretrained(tmp_path / "once")
    write_remote_code(tmp_path / "once")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "once", trust_remote_code=True)
    assert type(model) is not type(models[model_type])
    logits = _cut_again(model)
    torch.testing.assert_close(logits, _cut_again(copy.deepcopy(models[model_type])), atol=1e-6, rtol=0)
    model.save_pretrained(tmp_path / "twice")
    for trust in (None, True):
        loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice", trust_remote_code=trust)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**BATCH).logits, logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("configured", "asked"), [(True, None), (False, True), (True, False), (False, None)])
def test_it_is_saved_when_asked_for(configured, asked, tmp_path):
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(), OptinConfig(flops=0.6, probes=4, remote_code=configured))
    pruner.save_pretrained(tmp_path, remote_code=asked)
    expected = configured if asked is None else asked
    assert (tmp_path / "modeling_optin.py").exists() == expected
    assert ("auto_map" in json.loads((tmp_path / "config.json").read_text())) == expected
    assert not hasattr(pruner.pruned_model.config, "auto_map")


def test_the_file_imports_torch_and_transformers_only(models, tmp_path):
    models["mpnet"].save_pretrained(tmp_path)
    write_remote_code(tmp_path)
    text = (tmp_path / "modeling_optin.py").read_text()
    imported = {
        name.split(".")[0]
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names])
    }
    assert imported - sys.stdlib_module_names == {"torch", "transformers"}
    assert "TokenMerger" not in text, "it merges none"
    assert "mpnet.encoder" not in text and "register_architecture" not in text, "it knows no architecture"
    assert len(text.splitlines()) < 1400, "it is to be read before it is trusted"


def test_an_architecture_without_a_row(tmp_path):
    """Beside a model that was saved in format 1, whose file comes before or after."""
    shape = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
    model = LlamaModel(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=2)).eval()
    groups = find_groups(model, {"input_ids": BATCH["input_ids"]})
    masks = random_masks(groups)
    for key in ("layers.0.neurons", "layers.1.heads"):  # neither of these runs any more
        masks[key][:] = False
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    model.save_pretrained(tmp_path / "llama")
    write_remote_code(tmp_path / "llama")
    for name in ("earlier", "upgraded"):
        shutil.copytree(FORMAT_1 / "bert-remote-code", tmp_path / name)
    shutil.copytree(FORMAT_1 / "vit-merging", tmp_path / "merging")
    write_remote_code(tmp_path / "upgraded")
    write_remote_code(tmp_path / "merging")
    assert "TokenMerger" in (tmp_path / "merging" / "modeling_optin.py").read_text()
    for order in (("llama", "earlier", "upgraded", "merging"), ("earlier", "llama")):
        place = tmp_path / order[0]
        results = load_alone("without", [tmp_path / name for name in order], place)
        with torch.no_grad():
            expected = model(**BATCH).last_hidden_state
        torch.testing.assert_close(results["llama.logits"], expected, atol=1e-6, rtol=0)
        for name in set(order) & {"earlier", "upgraded"}:
            here = AutoModelForSequenceClassification.from_pretrained(FORMAT_1 / "bert-remote-code")
            torch.testing.assert_close(results[f"{name}.logits"], output_of(here, BATCH), atol=1e-6, rtol=0)
    here = AutoModelForImageClassification.from_pretrained(FORMAT_1 / "vit-merging")
    torch.testing.assert_close(
        load_file(tmp_path / "llama" / "without.safetensors")["merging.logits"],
        output_of(here, PIXELS),
        atol=1e-6,
        rtol=0,
    )


def test_a_dense_folder_is_refused(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="remote_code=True needs a pruned structure to rebuild"):
        write_remote_code(tmp_path)


def test_a_class_that_no_auto_class_makes_is_refused(tmp_path):
    _pruned("siglip_text_model").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an Auto class of transformers that makes SiglipTextModel, and there is none"):
        write_remote_code(tmp_path)


def test_an_excerpt_stands_alone():
    imports, definitions = excerpt([("optimum_optin.storage.structure", "structure_from_json")])
    scope = {}
    exec("\n".join(["from __future__ import annotations", *imports, *definitions]), scope)
    kept = scope["structure_from_json"]({"layers.0.heads": {"units": 4, "kept": "0,2-3"}})
    assert kept["layers.0.heads"].kept == (0, 2, 3)
    assert "compose" not in scope


def test_without_anything_the_warning_names_the_package(models, tmp_path):
    """The card and docs/source/guides/loading.mdx quote it."""
    pruner = OptinPruner(tiny_model())
    pruner.prune(tiny_samples(), OptinConfig(flops=0.6, probes=4), save_dir=tmp_path / "plain")
    with pytest.raises(AssertionError) as error:
        load_alone("without", [tmp_path / "plain"], tmp_path)
    quoted = (
        "Unknown quantization type, got optimum_optin",
        "RuntimeError: You set `ignore_mismatched_sizes` to `False`",
    )
    assert "MISMATCH" in str(error.value)
    for page in (str(error.value), (tmp_path / "plain" / "README.md").read_text(), LOADING.read_text()):
        assert all(words in page for words in quoted)
    entry = json.loads((tmp_path / "plain" / "config.json").read_text())["quantization_config"]
    assert "import optimum_optin" in entry["how_to_load"]
    again = copy.deepcopy(models["bert"])
    again.config.quantization_config.how_to_load = "as others put it"  # what the note says is not read back
    again.save_pretrained(tmp_path / "again")
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")


def test_it_is_refused_before_scoring(monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    model = tiny_model("siglip_text_model")
    with pytest.raises(ValueError, match="remote_code=True needs an Auto class of transformers that makes"):
        OptinPruner(model).prune(tiny_samples(model=model), OptinConfig(flops=0.5, remote_code=True))


def test_code_of_an_earlier_save_goes(tmp_path):
    pruner, config = OptinPruner(tiny_model()), OptinConfig(flops=0.5, probes=8)
    pruner.prune(tiny_samples(), config)
    pruner.save_pretrained(tmp_path / "pruned", remote_code=True)
    assert (tmp_path / "pruned" / "modeling_optin.py").is_file()
    pruner.save_pretrained(tmp_path / "pruned", remote_code=False)
    assert not (tmp_path / "pruned" / "modeling_optin.py").exists()
    assert "auto_map" not in json.loads((tmp_path / "pruned" / "config.json").read_text())
