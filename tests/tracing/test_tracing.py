"""Groups found by running a model: those of the table, and of models without a row those written down by hand."""

import re

import pytest
import torch
import transformers as tr
from tiny import perturbed, tiny_batch, tiny_model
from torch import nn

from optimum_optin.tracing import trace

IDS = {"input_ids": torch.arange(5, 17)[None]}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)}
SIZES = {"vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "pad_token_id": 0}
TEXT = {**SIZES, "intermediate_size": 48, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2}
GROUPED = {**TEXT, "num_key_value_heads": 2}

GROUPED_HEADS = (
    "layers.#.self_attn 2: q_proj.weight[0] x 16, k_proj.weight[0] x 8, v_proj.weight[0] x 8 -> o_proj.weight[1] x 16"
)
LLAMA = {
    GROUPED_HEADS,
    "layers.#.mlp 48: gate_proj.weight[0] x 1, up_proj.weight[0] x 1 -> down_proj.weight[1] x 1",
}


def _packed(module, name, output, rows, *, dim=0):
    """Packed queries, keys and values, with a bias."""
    return f"{module} 4: {name}.weight[{dim}] x {rows}, {name}.bias[0] x {rows} -> {output}.weight[{1 - dim}] x 8"


def _neurons(module, first, second, units, *, dim=0):
    return f"{module} {units}: {first}.weight[{dim}] x 1, {first}.bias[0] x 1 -> {second}.weight[{1 - dim}] x 1"


def _with_biases(module, names, output):
    weights, biases = (", ".join(f"{name}.{kind}[0] x 8" for name in names) for kind in ("weight", "bias"))
    return f"{module} 4: {weights}, {biases} -> {output}.weight[1] x 8"


class Encoder(nn.Module):
    """PyTorch's own layers, without a config."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 48, batch_first=True), 2)

    def forward(self, features):
        return self.encoder(features)


def _tiny(kind, inputs=IDS, **settings):
    return lambda: (getattr(tr, f"{kind}Model")(getattr(tr, f"{kind}Config")(**settings)), inputs)


# name -> model and sample; then its groups: module, units, what each unit owns.
OTHERS = {
    "gpt2": (
        _tiny("GPT2", vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_inner=48),
        {_packed("h.#.attn", "c_attn", "c_proj", 24, dim=1), _neurons("h.#.mlp", "c_fc", "c_proj", 48, dim=1)},
    ),
    "gpt_neox": (
        _tiny("GPTNeoX", **TEXT),
        {
            _packed("layers.#.attention", "query_key_value", "dense", 24),
            _neurons("layers.#.mlp", "dense_h_to_4h", "dense_4h_to_h", 48),
        },
    ),
    "bloom": (
        _tiny("Bloom", vocab_size=99, hidden_size=32, n_layer=2, n_head=4),
        {
            _packed("h.#.self_attention", "query_key_value", "dense", 24),
            _neurons("h.#.mlp", "dense_h_to_4h", "dense_4h_to_h", 128),
        },
    ),
    "llama": (_tiny("Llama", **GROUPED), LLAMA),
    "qwen3": (_tiny("Qwen3", head_dim=8, **GROUPED), LLAMA),
    "phi3": (
        _tiny("Phi3", **GROUPED),
        {
            "layers.#.self_attn 2: qkv_proj.weight[0] x 32 -> o_proj.weight[1] x 16",
            "layers.#.mlp 48: gate_up_proj.weight[0] x 2 -> down_proj.weight[1] x 1",
        },
    ),
    "falcon": (
        _tiny("Falcon", new_decoder_architecture=True, num_kv_heads=2, **SIZES),
        {
            "h.#.self_attention 2: query_key_value.weight[0] x 32 -> dense.weight[1] x 16",
            "h.#.mlp 128: dense_h_to_4h.weight[0] x 1 -> dense_4h_to_h.weight[1] x 1",
        },
    ),
    "opt": (
        _tiny("OPT", ffn_dim=48, max_position_embeddings=64, word_embed_proj_dim=32, **SIZES),
        {
            _with_biases("decoder.layers.#.self_attn", ("k_proj", "v_proj", "q_proj"), "out_proj"),
            _neurons("decoder.layers.#", "fc1", "fc2", 48),
        },
    ),
    "deberta-v2": (
        _tiny(
            "DebertaV2",
            relative_attention=True,
            position_buckets=8,
            pos_att_type=["p2c", "c2p"],
            conv_kernel_size=3,
            **TEXT,
        ),
        {
            _with_biases(
                "encoder.layer.#.attention",
                [f"self.{name}_proj" for name in ("query", "key", "value", "pos_key", "pos_query")],
                "output.dense",
            ),
            _neurons("encoder.layer.#", "intermediate.dense", "output.dense", 48),
        },
    ),
    "albert": (
        _tiny("Albert", embedding_size=16, **TEXT),
        {
            _with_biases("encoder.albert_layer_groups.#.albert_layers.#.attention", ("query", "key", "value"), "dense"),
            _neurons("encoder.albert_layer_groups.#.albert_layers.#", "ffn", "ffn_output", 48),
        },
    ),
    "mixtral": (
        _tiny("Mixtral", num_local_experts=4, **GROUPED),
        {GROUPED_HEADS, "layers.#.mlp.experts 48: gate_up_proj[1] x 2 -> down_proj[2] x 1"},
    ),
    "segformer": (
        _tiny(
            "Segformer",
            PIXELS,
            depths=[1, 1],
            num_encoder_blocks=2,
            sr_ratios=[2, 1],
            hidden_sizes=[32, 32],
            num_attention_heads=[4, 4],
            patch_sizes=[7, 3],
            strides=[4, 2],
            mlp_ratios=[2, 2],
        ),
        {
            _with_biases("stages.#.blocks.#.attention", ("q_proj", "k_proj", "v_proj"), "o_proj"),
            "stages.#.blocks.#.mlp 64: fc1.weight[0] x 1, dwconv.dwconv.weight[0] x 1, fc1.bias[0] x 1, "
            "dwconv.dwconv.bias[0] x 1 -> fc2.weight[1] x 1",
        },
    ),
    "torch's own layers": (
        lambda: (Encoder(), {"features": torch.linspace(-1, 1, 160).sin().view(1, 5, 32)}),
        {
            "encoder.layers.#.self_attn 4: in_proj_weight[0] x 24, in_proj_bias[0] x 24 -> out_proj.weight[1] x 8",
            _neurons("encoder.layers.#", "linear1", "linear2", 48),
        },
    ),
}


def _described(group):
    """A group in words, with paths from its module, layers without their numbers."""
    inside = f"{group.module}."
    sides = (", ".join(str(each).removeprefix(inside) for each in side) for side in (group.writes, group.reads))
    return f"{re.sub(r'[0-9]+', '#', group.module)} {group.units}: {' -> '.join(sides)}"


@pytest.mark.parametrize("name", OTHERS)
def test_units_of_models_that_have_no_row(name):
    make, expected = OTHERS[name]
    torch.manual_seed(0)
    model, inputs = make()
    assert {_described(group) for group in trace(perturbed(model), inputs).groups} == expected


def test_a_bias_that_a_stack_shares_is_named_in_the_groups_of_its_layers():
    sizes = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    config = tr.T5Config(decoder_start_token_id=0, **sizes)
    found = trace(perturbed(tr.T5Model(config)), {**IDS, "decoder_input_ids": IDS["input_ids"]}).groups
    shared = {group.reads[0].tensor: [str(each) for each in group.shared] for group in found}
    first, bias = "{}.block.{}.layer.0.SelfAttention.o.weight", "block.0.layer.0.SelfAttention.relative_attention_bias"
    expected = {
        first.format(stack, layer): [f"{stack}.{bias}.weight[1] x 1"]
        for stack in ("encoder", "decoder")
        for layer in (0, 1)
    }
    expected |= {f"decoder.block.{layer}.layer.1.EncDecAttention.o.weight": [] for layer in (0, 1)}
    neurons = {f"encoder.block.{layer}.layer.1": [] for layer in (0, 1)}
    neurons |= {f"decoder.block.{layer}.layer.2": [] for layer in (0, 1)}
    assert shared == expected | {f"{name}.DenseReluDense.wo.weight": [] for name in neurons}


def test_channels_of_convolutions_through_batch_norm_and_shortcuts():
    sizes = {"embedding_size": 8, "hidden_sizes": [16, 24], "depths": [2, 2], "layer_type": "basic"}
    model = perturbed(tr.ResNetModel(tr.ResNetConfig(**sizes)))
    found = trace(model, PIXELS)
    inner = [group for group in found.groups if group.module.endswith(".layer")]
    assert [group.units for group in inner] == [16, 16, 24, 24]
    assert {str(each).removeprefix(f"{inner[0].module}.0.") for each in inner[0].writes} == {
        "convolution.weight[0] x 1",
        *(f"normalization.{name}[0] x 1" for name in ("weight", "bias", "running_mean", "running_var")),
    }
    (stream,) = [group for group in found.groups if group.module == "encoder.stages"]
    assert stream.units == 16 and len(stream.reads) == 3  # the second layer, and both roads into the second stage
    assert {"layers.0.shortcut", "layers.0.layer.1", "layers.1.layer.1"} == {
        each.tensor.removeprefix("encoder.stages.0.").removesuffix(".convolution.weight")
        for each in stream.writes
        if "convolution" in each.tensor
    }
    (last,) = [each for each in found.left_out if "the model's output by channel" in each.reason]
    assert "encoder.stages.1.layers.0.shortcut.convolution.weight[0]" in last.tensors


def _indices(kind, settings, tensor):
    torch.manual_seed(0)
    found = trace(perturbed(_tiny(kind, **settings)()[0]), IDS).groups
    (part,) = [each for group in found for each in group.writes if each.tensor == tensor]
    return part.indices.tolist()


def test_which_rows_belong_to_a_head():
    def rows(*starts, length=8):
        return [[start + step for start in own for step in range(length)] for own in starts]

    gpt2 = {"vocab_size": 99, "n_embd": 32, "n_layer": 1, "n_head": 4}
    expected = rows(*((8 * u, 32 + 8 * u, 64 + 8 * u) for u in range(4)))
    assert _indices("GPT2", gpt2, "h.0.attn.c_attn.weight") == expected
    neox = _indices("GPTNeoX", {**TEXT, "num_hidden_layers": 1}, "layers.0.attention.query_key_value.weight")
    assert neox == rows((0,), (24,), (48,), (72,), length=24)
    one = {**GROUPED, "num_hidden_layers": 1}
    assert _indices("Phi3", one, "layers.0.self_attn.qkv_proj.weight") == rows((0, 8, 32, 48), (16, 24, 40, 56))
    assert _indices("Phi3", one, "layers.0.mlp.gate_up_proj.weight") == [[row, 48 + row] for row in range(48)]


def test_bfloat16_has_the_same_units():
    model = tiny_model("swin")
    batch = tiny_batch(model, samples=1)
    expected = [str(group) for group in trace(model, batch).groups]
    batch = {name: value.bfloat16() for name, value in batch.items()}
    assert [str(group) for group in trace(model.bfloat16(), batch).groups] == expected


def test_tracing_takes_as_many_passes_as_were_counted_for_it():
    model = tiny_model("bert")
    counted = []
    model.register_forward_pre_hook(lambda *_: counted.append(1))
    found = trace(model, tiny_batch(model, samples=1))
    assert len(counted) == found.passes <= 120
