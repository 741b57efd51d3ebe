"""A freely pruned Llama as GGUF: the sizes of its layers, and what llama.cpp writes with it, if it is there."""

import importlib
import sys
from pathlib import Path

import pytest
import torch
import transformers as tr
from language_models import language_model

from optimum_optin import find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

gguf = pytest.importorskip("gguf")
KEPT = {"heads": (2, 1, 0, 0, 2), "neurons": (48, 40, 32, 0, 0)}  # by layer; of the last, only its neurons are gone
TOKENS = 64


@pytest.fixture(scope="module")
def script():
    sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
    yield importlib.import_module("llama_cpp")
    sys.path.pop(0)


@pytest.fixture(scope="module", params=["llama", "mistral", "llama 3"])
def pruned(request, tmp_path_factory):
    """A model, and where it is."""
    place = tmp_path_factory.mktemp("llama")
    return made(place, request.param, KEPT), place


def made(place, kind, kept, **changes):
    """A model whose layers keep these numbers, its folder, and what llama.cpp's script writes of the dense one."""
    shape = {"num_hidden_layers": 5, "vocab_size": TOKENS, "tie_word_embeddings": True, "head_dim": 32, **changes}
    model = language_model(**shape, num_attention_heads=4, num_key_value_heads=2)
    weights, settings = model.state_dict(), model.config.to_dict()
    if kind == "mistral":
        model = tr.MistralForCausalLM(tr.MistralConfig.from_dict(settings | {"sliding_window": None}))
    if kind == "llama 3":
        stretched = {"rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0}
        stretched |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
        model = tr.LlamaForCausalLM(tr.LlamaConfig.from_dict(settings | {"rope_parameters": stretched}))
    model.eval().load_state_dict(weights)
    groups = find_groups(model)
    masks = {each.key: each.first(kept[each.role][int(each.layer.rpartition(".")[2])]) for each in groups}
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    model.save_pretrained(place / "pruned")
    writer = gguf.GGUFWriter(place / "vocab.gguf", "llama")
    writer.add_block_count(5)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_rope_dimension_count(32)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(model.config.rms_norm_eps)
    writer.add_vocab_size(TOKENS)
    writer.add_tokenizer_model("llama")
    plain, control, unknown = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL, gguf.TokenType.UNKNOWN
    writer.add_token_list(
        ["<unk>", "<s>", "</s>", *(f"\N{LOWER ONE EIGHTH BLOCK}w{each}" for each in range(3, TOKENS))]
    )
    writer.add_token_scores([0.0] * TOKENS)
    writer.add_token_types([unknown, control, control, *[plain] * (TOKENS - 3)])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return model


def test_the_file_has_the_sizes_of_each_layer(script, pruned):
    model, place = pruned
    script.write(place / "pruned", place / "vocab.gguf", place / "sizes.gguf", "f32")
    reader = gguf.GGUFReader(place / "sizes.gguf")
    found = {name: reader.get_field(f"deci.{name}").contents() for name in script.SIZES}
    assert found == {
        "feed_forward_length": [48, 40, 32, 0, 32],
        "attention.head_count": [4, 2, 0, 0, 4],
        "attention.head_count_kv": [2, 1, 0, 0, 2],
    }
    there = {each.name: each for each in reader.tensors}
    assert "blk.2.attn_norm.weight" not in there and not any(name.startswith("blk.3.") for name in there)
    assert tuple(there["blk.1.attn_q.weight"].shape) == (32, 64)
    rows = torch.from_numpy(there["blk.1.attn_q.weight"].data.copy()).view(2, 16, 2, 32)
    expected = model.model.layers[1].self_attn.q_proj.weight.view(2, 2, 16, 32)
    torch.testing.assert_close(rows.transpose(1, 2), expected.detach())
    with pytest.raises(SystemExit, match=r'reads 48 numbers, and q8_0 takes .*round_to=\{"neurons": 32\}'):
        script.write(place / "pruned", place / "vocab.gguf", place / "small.gguf", "q8_0")


def test_llama_cpp_writes_what_the_model_does(script, pruned):
    compare(script, *pruned)


def test_biases(script, tmp_path):
    made(tmp_path, "llama", KEPT, attention_bias=True)
    with pytest.raises(SystemExit, match=r"layers\.2\.self_attn\.o_proj\.bias is left of a sublayer without units"):
        script.write(tmp_path / "pruned", tmp_path / "vocab.gguf", tmp_path / "out.gguf")
    compare(script, made(tmp_path, "llama", {**KEPT, "heads": (2, 1, 1, 2, 1)}, attention_bias=True), tmp_path)


def compare(script, model, place):
    """Raise if llama.cpp writes something else."""
    xllamacpp = pytest.importorskip("xllamacpp")
    script.write(place / "pruned", place / "vocab.gguf", place / "run.gguf", "f32")
    prompt = [1, *torch.randint(3, TOKENS, (12,), generator=torch.Generator().manual_seed(0)).tolist()]
    written = model.generate(
        torch.tensor([prompt]), do_sample=False, max_new_tokens=12, min_new_tokens=12, suppress_tokens=[0, 1, 2]
    )[0, len(prompt) :]
    parameters = xllamacpp.CommonParams()
    parameters.model.path, parameters.n_ctx, parameters.n_gpu_layers = str(place / "run.gguf"), 64, 0
    parameters.cpuparams.n_threads = 1
    bias = {"logit_bias": [[each, False] for each in (0, 1, 2)]}
    answer = xllamacpp.Server(parameters).handle_completions(
        {"prompt": prompt, "temperature": 0, "max_tokens": 12, "ignore_eos": True, **bias}
    )
    assert answer["choices"][0]["text"].split() == [f"w{each}" for each in written.tolist()]
    assert len(set(written.tolist())) > 2, "what it writes must tell one model from another"


def test_other_models_are_refused(script, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(SystemExit, match="is a 'gpt2' model; this is for llama and mistral"):
        script.write(tmp_path, tmp_path / "vocab.gguf", tmp_path / "out.gguf")
