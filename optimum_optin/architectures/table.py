"""The table of architectures: where a model type keeps its heads and neurons."""

from __future__ import annotations

from dataclasses import replace

from .group import Producer
from .registry import register_architecture
from .stacks import Stack, Sublayer, heads, neurons


def _part_of_a_dual_model(name: str, reads: str, tower: Stack) -> Stack:
    """The stack of a tower inside a dual model, whose module and config begin with `name`."""

    def placed(sublayer: Sublayer) -> Sublayer:
        fields = tuple(f"{name}_config.{field}" for field in sublayer.config_fields)
        return replace(sublayer, config_fields=fields)

    sublayers = tuple(map(placed, tower.sublayers))
    return replace(tower, name=name, reads=reads, layers=f"{name}_model.{tower.layers}", sublayers=sublayers)


# No row's heads name config_fields: these classes take a head's width to be hidden_size / num_attention_heads.
_BERT_FFN = neurons(["intermediate.dense"], "output.dense", config_fields=("intermediate_size",))


_BERT = Stack(
    "encoder.layer",
    (
        heads(
            "attention.self",
            "attention.self.attention_head_size",
            ["attention.self.query", "attention.self.key", "attention.self.value"],
            "attention.output.dense",
            counters={"attention.self.num_attention_heads": "units", "attention.self.all_head_size": "features"},
        ),
        _BERT_FFN,
    ),
)


for _model_type in ("bert", "roberta", "electra", "camembert", "xlm-roberta"):
    register_architecture(_model_type, _BERT)


register_architecture(
    "distilbert",
    Stack(
        "transformer.layer",
        (
            heads(
                "attention",
                "attention.attention_head_size",
                ["attention.q_lin", "attention.k_lin", "attention.v_lin"],
                "attention.out_lin",
                counters={"attention.n_heads": "units"},
            ),
            neurons(["ffn.lin1"], "ffn.lin2", config_fields=("hidden_dim",)),
        ),
    ),
)


register_architecture(
    "mpnet",
    Stack(
        "encoder.layer",
        (
            heads(
                "attention.attn",
                "attention.attn.attention_head_size",
                ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
                "attention.attn.o",
                counters={"attention.attn.num_attention_heads": "units", "attention.attn.all_head_size": "features"},
                # The encoder computes one position bias for all layers, so each layer picks its heads from it.
                shared_bias="attention.attn.position_bias",
            ),
            _BERT_FFN,
        ),
    ),
)


register_architecture(
    "modernbert",
    Stack(
        "layers",
        (
            heads("attn", "attn.head_dim", [Producer("attn.Wqkv", parts=3)], "attn.Wo"),
            neurons([Producer("mlp.Wi", parts=2)], "mlp.Wo", config_fields=("intermediate_size",)),
        ),
    ),
)


_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")


_VIT_FFN = neurons(["mlp.fc1"], "mlp.fc2", config_fields=("intermediate_size",))


_VIT = Stack(
    "layers",
    (heads("attention", "attention.head_dim", _QKV, "attention.o_proj"), _VIT_FFN),
    keys="attention.k_proj",
)


for _model_type in ("vit", "deit"):
    register_architecture(_model_type, _VIT)


register_architecture(
    "beit",
    Stack(
        "layers",
        (
            heads(
                "attention",
                "attention.head_dim",
                _QKV,
                "attention.o_proj",
                # A model has one of the two: a table in every layer, or one for all layers, added to the mask.
                tables={"relative_position_bias.relative_position_bias_table": 1},
                shared_bias="attention_mask",
            ),
            neurons(["mlp.fc1"], "mlp.fc2", config_fields=("intermediate_size",)),
        ),
    ),
)


_DINOV2 = Stack(
    "encoder.layer",
    (
        heads("attention", "attention.head_dim", _QKV, "attention.o_proj"),
        # The config has a whole number, mlp_ratio, in place of a size.
        neurons(
            ["mlp.fc1"],
            "mlp.fc2",
            otherwise=neurons(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj"),
        ),
    ),
    keys="attention.k_proj",
)


for _model_type in ("dinov2", "dinov2_with_registers"):
    register_architecture(_model_type, _DINOV2)


_DINOV3_FFN = {"config_fields": ("intermediate_size",)}


register_architecture(
    "dinov3_vit",
    Stack(
        "layer",
        (
            heads(
                "attention",
                "attention.head_dim",
                _QKV,
                "attention.o_proj",
                counters={"attention.num_heads": "units"},
            ),
            neurons(
                ["mlp.gate_proj", "mlp.up_proj"],
                "mlp.down_proj",
                otherwise=neurons(["mlp.up_proj"], "mlp.down_proj", **_DINOV3_FFN),
                **_DINOV3_FFN,
            ),
        ),
    ),
)


_TOWER_HEADS = heads(
    "self_attn",
    "self_attn.head_dim",
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attn.out_proj",
    counters={"self_attn.num_heads": "units"},
)


_CLIP_TOWER = Stack("encoder.layers", (_TOWER_HEADS, _VIT_FFN))


_KEYS = "self_attn.k_proj"


for _model_type in ("clip_text_model", "siglip_text_model"):
    register_architecture(_model_type, _CLIP_TOWER)


register_architecture("clip_vision_model", replace(_CLIP_TOWER, keys=_KEYS))


# The pooling head, which stays whole, reads intermediate_size as well.
_SIGLIP_VISION_TOWER = replace(_CLIP_TOWER, sublayers=(_TOWER_HEADS, replace(_VIT_FFN, config_fields=())))


register_architecture("siglip_vision_model", replace(_SIGLIP_VISION_TOWER, keys=_KEYS))


# A model has both towers, or one (classifiers of images). What a uniform layout cannot cut in one, it cuts in none.
for _model_type, _tower in (("clip", _CLIP_TOWER), ("siglip", _SIGLIP_VISION_TOWER)):
    register_architecture(
        _model_type,
        _part_of_a_dual_model("vision", "pixel_values", replace(_tower, keys=_KEYS)),
        _part_of_a_dual_model("text", "input_ids", _tower),
    )


register_architecture(
    "swin",
    Stack(
        "encoder.layers.*.blocks",
        (
            heads(
                "attention",
                "attention.head_dim",
                _QKV,
                "attention.o_proj",
                tables={"attention.relative_position_bias.relative_position_bias_table": 1},
                windowed=True,
            ),
            neurons(["mlp.fc1"], "mlp.fc2"),
        ),
        between="encoder.layers.*.downsample",
    ),
)


register_architecture(
    "swinv2",
    Stack(
        "encoder.layers.*.blocks",
        (
            heads(
                "attention.self",
                "attention.self.attention_head_size",
                ["attention.self.query", "attention.self.key", "attention.self.value"],
                "attention.output.dense",
                counters={
                    "attention.self.num_attention_heads": "units",
                    "attention.self.all_head_size": "features",
                    "attention.self.continuous_position_bias_mlp.2.out_features": "units",
                },
                tables={"attention.self.logit_scale": 0, "attention.self.continuous_position_bias_mlp.2.weight": 0},
                windowed=True,
            ),
            neurons(["intermediate.dense"], "output.dense"),
        ),
        between="encoder.layers.*.downsample",
    ),
)
