"""Groups that are found, against those that the table of architectures declares, and against tables written by hand."""

import pytest
import torch
import transformers as tr
from tiny import CASES, TEXT, perturbed, tiny_batch, tiny_model

from optimum_optin import check_architecture
from optimum_optin.discovery.declared import declared_groups
from optimum_optin.discovery.discover import discover

SHARED = ("mpnet", "beit with a shared bias", "beit with both biases")
IDS = {"input_ids": torch.arange(5, 15)[None]}


@pytest.mark.parametrize("model_type", CASES, ids=CASES)
def test_what_is_found_is_what_the_row_says(model_type):
    model = tiny_model(model_type)
    found = {group.key: group for group in discover(model, tiny_batch(model, samples=1))}
    declared = declared_groups(model)
    for group in declared:
        own = found[group.key.replace("vision.", "layers.") if "classifier" in model_type else group.key]
        assert (own.units, own.width, own.consumer) == (group.units, group.width, group.consumer)
        assert set(own.producers) == set(group.producers)
        assert set(own.cut.writes) == set(group.cut.writes) and own.cut.reads == group.cut.reads
        assert bool(own.cut.shared_bias) == (model_type in SHARED and group.role == "heads")
        counters = {path: n for path, n in group.cut.counters.items() if not path.endswith("out_features")}
        assert own.cut.counters.items() >= counters.items()
    consumers = [group.consumer for group in declared]
    assert [group.consumer for group in found.values() if group.consumer in consumers] == consumers


MODELS = {
    "albert": (
        lambda: tr.AlbertModel(tr.AlbertConfig(embedding_size=16, **TEXT)),
        {"layers.0.heads": (4, 8), "layers.0.neurons": (48, 1)},
    ),
    "gpt2": (
        lambda: tr.GPT2Model(tr.GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=4, n_positions=64)),
        {"layers.0.heads": (4, 8), "layers.0.neurons": (128, 1)},
    ),
    "llama": (
        lambda: tr.LlamaModel(tr.LlamaConfig(num_key_value_heads=2, **TEXT)),
        {
            f"layers.{layer}.{role}": shape
            for layer in (0, 1)
            for role, shape in (("heads", (2, 16)), ("neurons", (48, 1)))
        },
    ),
    "t5": (
        lambda: tr.T5Model(tr.T5Config(vocab_size=99, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4)),
        {
            "encoder.0.heads": (4, 8),
            "encoder.0.neurons": (48, 1),
            "decoder.0.heads": (4, 8),
            "decoder.0.EncDecAttention_heads": (4, 8),
            "decoder.0.neurons": (48, 1),
        },
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_without_a_row_are_proved_by_cutting(name):
    make, expected = MODELS[name]
    proof = check_architecture(perturbed(make()))
    assert {each.group.key: (each.group.units, each.group.width) for each in proof.groups} == expected
    assert [each.cut for each in proof.groups] == [None] * len(expected)
    assert proof.largest < proof.rounding
