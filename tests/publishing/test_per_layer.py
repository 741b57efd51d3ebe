"""Export to `per_layer_config`: what the config holds when it is read again, and a patched model that reads it."""

import copy

import pytest
import torch
import transformers as tr
from decoders import DECODERS, generator, prompts, real
from safetensors.torch import load_file
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from optimum_optin import find_groups
from optimum_optin.counting.queries import by_query_heads
from optimum_optin.editing.surgery import rewrite
from optimum_optin.publishing import per_layer
from optimum_optin.publishing.per_layer import write_per_layer_config
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

BOTH = ("mistral", "phi", "gpt2")  # gpt2's heads stay whole: their width is the hidden size by their number
NO_HEADS = ("llama", "gpt_neox")  # whose configs check all layers' heads at once


def cut(name, folder, roles=("heads", "neurons"), step=1):
    """A model whose layers keep different numbers of units, saved; and these numbers by group."""
    model, drawn = copy.deepcopy(generator(name)), torch.Generator().manual_seed(0)
    groups, masks = find_groups(model), {}
    for place, group in enumerate(groups):
        less = {"heads": (0, 2, step), "neurons": (0, 8, 19)}[group.role][place // 2] if group.role in roles else 0
        masks[group.key] = torch.randperm(group.units, generator=drawn) < group.units - less
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    model.save_pretrained(folder)
    return model, {group.key: int(masks[group.key].sum()) for group in groups}


@pytest.mark.parametrize("name", BOTH)
def test_the_config_has_the_sizes_of_each_layer(name, tmp_path, caplog):
    roles = ("neurons",) if name == "gpt2" else ("heads", "neurons")
    _, kept = cut(name, tmp_path / "pruned", roles)
    assert not write_per_layer_config(tmp_path / "pruned", tmp_path / "out")
    assert "does not read per_layer_config" in caplog.text
    config, dense = tr.AutoConfig.from_pretrained(tmp_path / "out"), DECODERS[name]
    assert (
        not hasattr(config, "quantization_config") and "quantization" not in (tmp_path / "out/config.json").read_text()
    )
    neurons = "n_inner" if name == "gpt2" else "intermediate_size"
    for layer in range(3):
        here = config.per_layer_config[layer]
        assert getattr(here, neurons) == kept[f"layers.{layer}.neurons"]
        shared = dense.num_attention_heads // getattr(dense, "num_key_value_heads", dense.num_attention_heads)
        assert here.num_attention_heads == kept[f"layers.{layer}.heads"] * shared
    assert len({getattr(config.per_layer_config[layer], neurons) for layer in range(3)}) > 1
    before, after = (load_file(tmp_path / each / "model.safetensors") for each in ("pruned", "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[each], after[each]) for each in before)
    with pytest.raises(Exception, match="per-layer attribute"):  # as the docs say; a version that reads it fails here
        tr.AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_a_model_that_reads_it_computes_the_same(tmp_path, monkeypatch):
    """The half that transformers lacks, for one family: each layer is made of its own config."""
    model, _ = cut("mistral", tmp_path / "pruned")
    made = MistralDecoderLayer.__init__
    monkeypatch.setattr(
        MistralDecoderLayer,
        "__init__",
        lambda self, config, layer_idx: made(self, config.per_layer_config[layer_idx], layer_idx),
    )
    assert write_per_layer_config(tmp_path / "pruned", tmp_path / "out"), "it is known to load"
    loaded, batch = tr.AutoModelForCausalLM.from_pretrained(tmp_path / "out"), prompts("mistral")
    with torch.no_grad():
        found, expected = (real(each(**batch).logits, batch) for each in (loaded, model))
        torch.testing.assert_close(found, expected)
        dense = generator("mistral")(**batch).logits
    assert (dense - loaded(**batch).logits).abs().max() > 0.1
    options = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}
    assert torch.equal(loaded.generate(**batch, **options), model.generate(**batch, **options))


def test_query_heads_alone(tmp_path):
    model = copy.deepcopy(generator("mistral"))
    groups = by_query_heads(model, find_groups(model))
    masks = {each.key: each.first(4 if each.key == "layers.1.query_heads" else each.units) for each in groups}
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    model.save_pretrained(tmp_path / "pruned")
    write_per_layer_config(tmp_path / "pruned", tmp_path / "out")
    layers = tr.AutoConfig.from_pretrained(tmp_path / "out").per_layer_config
    assert [(each.num_attention_heads, each.num_key_value_heads) for each in layers] == [(8, 4), (4, 4), (8, 4)]


@pytest.mark.parametrize("name", NO_HEADS)
def test_what_a_config_does_not_take_is_refused(name, tmp_path):
    cut(name, tmp_path / "pruned", step=2)
    with pytest.raises(ValueError, match="does not take .*num_attention_heads|says how many there are"):
        write_per_layer_config(tmp_path / "pruned", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    cut(name, tmp_path / "narrow", ("neurons",))
    write_per_layer_config(tmp_path / "narrow", tmp_path / "out")
    assert (
        len({each.intermediate_size for each in tr.AutoConfig.from_pretrained(tmp_path / "out").per_layer_config}) > 1
    )


def test_what_cannot_be_exported_is_refused_by_name(tmp_path, monkeypatch):
    model = generator("mistral")
    model.save_pretrained(tmp_path / "dense")
    with pytest.raises(ValueError, match="has no entry that says what was cut"):
        write_per_layer_config(tmp_path / "dense", tmp_path / "out")
    cut("mistral", tmp_path / "pruned")
    with pytest.raises(ValueError, match="is the pruned folder itself"):
        write_per_layer_config(tmp_path / "pruned", tmp_path / "pruned")
    empty = copy.deepcopy(model)
    groups = find_groups(empty)
    masks = {each.key: torch.ones(each.units, dtype=torch.bool) for each in groups}
    masks["layers.1.heads"][:] = False
    rewrite(empty, groups, masks)
    record_structure(empty, structure_of(groups, masks), groups)
    empty.save_pretrained(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"layers.1.heads kept none, .*floors=\{'heads': 1\}"):
        write_per_layer_config(tmp_path / "empty", tmp_path / "out")
    monkeypatch.setattr(per_layer, "_FIELD", "a_field_of_later")
    with pytest.raises(ImportError, match="a_field_of_later needs a newer transformers"):
        write_per_layer_config(tmp_path / "pruned", tmp_path / "out")
