"""Loading a pruned folder, and what users do with it next; other packages are in test_neighbours.py."""

import json
import logging
import shutil
import subprocess
import sys

import pytest
import torch
import transformers
from folders import without_digest
from packaging import version
from safetensors.torch import load_file, save_file
from tiny import tiny_batch, tiny_model
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.editing.surgery import empty, follow_shapes
from optimum_optin.search.macs import count_parameters


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """(folder, the model that was saved there); its second layer has no heads left."""
    folder = tmp_path_factory.mktemp("pruned")
    model = tiny_model()
    with torch.no_grad():  # heads that do nothing are pruned first
        model.bert.encoder.layer[1].attention.output.dense.weight.mul_(1e-6)
    pruner = OptinPruner(model, word_tokenizer())
    pruner.prune(TEXTS, OptinConfig(flops=0.5, probes=32, min_heads=0), save_dir=folder)
    assert pruner.report.layers["layers.1"]["heads"]["kept"] == 0
    return folder, pruner.pruned_model


def test_a_fresh_process_loads_it_with_plain_transformers(pruned, tmp_path):
    folder, model = pruned
    batch = tiny_batch(model)
    save_file(batch, tmp_path / "batch.safetensors")
    program = (
        "import json, sys, torch, optimum_optin\n"
        "from safetensors.torch import load_file\n"
        "from transformers import AutoModelForSequenceClassification\n"
        "model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1])\n"
        "with torch.no_grad(): logits = model(**load_file(sys.argv[2])).logits\n"
        "print(json.dumps(logits.flatten().double().tolist()))\n"
    )
    arguments = [sys.executable, "-c", program, str(folder), str(tmp_path / "batch.safetensors")]
    printed = subprocess.run(arguments, check=True, capture_output=True, text=True).stdout
    with torch.no_grad():
        expected = model(**batch).logits.flatten().double().tolist()
    assert json.loads(printed) == pytest.approx(expected, abs=1e-6)


def test_nothing_of_the_loading_stays_behind(pruned):
    model = AutoModelForSequenceClassification.from_pretrained(pruned[0])
    for name in ("hf_quantizer", "quantization_method", "is_quantized"):
        assert not getattr(model, name, None), name
    assert not hasattr(model.config, "_is_quantized")
    model.half().float()
    assert type(model) is type(pruned[1])


def test_bfloat16_and_device_map(pruned):
    folder, model = pruned
    batch = tiny_batch(model)
    with torch.no_grad():
        expected = model(**batch).logits
        placed = AutoModelForSequenceClassification.from_pretrained(folder, device_map="cpu")
        torch.testing.assert_close(placed(**batch).logits, expected, atol=0, rtol=0)
        low = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.bfloat16)
        assert {parameter.dtype for parameter in low.parameters()} == {torch.bfloat16}
        torch.testing.assert_close(low(**batch).logits.float(), expected, atol=0.05, rtol=0.05)


def test_a_pruned_folder_can_be_pruned_again(pruned, tmp_path):
    folder, once = pruned
    pruner = OptinPruner.from_pretrained(folder)
    pruner.prune(TEXTS, OptinConfig(flops=0.6, probes=8), save_dir=tmp_path / "twice")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "twice")
    assert count_parameters(loaded) < count_parameters(once)
    batch = tiny_batch(once)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, pruner.pruned_model(**batch).logits, atol=0, rtol=0)
    structure = loaded.config.quantization_config.structure
    assert structure["layers.1.heads"] == {"units": 4, "kept": ""}
    assert structure["layers.0.neurons"]["units"] == 48


def test_hidden_states(pruned):
    folder, model = pruned
    base = AutoModel.from_pretrained(folder)
    assert len(base(**tiny_batch(model), output_hidden_states=True).hidden_states) == 4


@pytest.mark.skipif(version.parse(transformers.__version__) < version.parse("5.23"), reason="older ones cannot")
def test_a_new_head_on_load(pruned):
    folder, model = pruned
    config = AutoConfig.from_pretrained(folder)
    config.num_labels = 5
    other = AutoModelForSequenceClassification.from_pretrained(folder, config=config, ignore_mismatched_sizes=True)
    assert other(**tiny_batch(model)).logits.shape == (3, 5)


def test_weights_of_another_shape_are_refused(pruned, tmp_path):
    folder = shutil.copytree(pruned[0], tmp_path / "damaged")
    weights = load_file(folder / "model.safetensors")
    weights["bert.pooler.dense.weight"] = torch.zeros(7, 32)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        (ValueError, RuntimeError), match=r"bert\.pooler\.dense\.weight|size mismatch|ignore_mismatched"
    ):
        AutoModelForSequenceClassification.from_pretrained(folder)


def test_the_config_of_a_loaded_model_loads_it_again(pruned):
    folder, model = pruned
    for config in (model.config, AutoModelForSequenceClassification.from_pretrained(folder).config):
        again = AutoModelForSequenceClassification.from_pretrained(folder, config=config)
        batch = tiny_batch(model)
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_folders_that_hold_empty_weights_still_load(pruned, tmp_path, caplog):
    """So they were saved before."""
    folder, model = without_digest(shutil.copytree(pruned[0], tmp_path / "earlier")), pruned[1]
    weights = load_file(folder / "model.safetensors")
    empty = {"bert.encoder.layer.1.attention.output.dense.weight": torch.zeros(32, 0)}
    assert not set(empty) & set(weights)
    save_file(weights | empty, folder / "model.safetensors", metadata={"format": "pt"})
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        loaded, info = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
    finally:
        logger.removeHandler(caplog.handler)
    assert not any(info.values())
    assert "UNEXPECTED" not in caplog.text
    batch = tiny_batch(model)
    assert torch.equal(loaded(**batch).logits, model(**batch).logits)
    assert not loaded._keys_to_ignore_on_load_unexpected


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_without_inputs_gives_its_bias(bias):
    linear = torch.nn.Linear(4, 3, bias=bias)
    linear.weight = torch.nn.Parameter(linear.weight[:, :0])
    follow_shapes(linear)
    empty(linear)
    expected = linear.bias.detach() if bias else torch.zeros(3)
    for training in (False, True):
        linear.train(training)
        assert torch.equal(linear(torch.zeros(2, 5, 0)), expected.expand(2, 5, 3))
    assert [name for name, _ in linear.named_parameters()] == ["bias"] * bias
    assert linear.to(torch.bfloat16).weight.dtype == torch.bfloat16
