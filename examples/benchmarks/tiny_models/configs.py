"""Tiny configs: the default config of a model type, shrunk by rules on names, nested configs included."""

from __future__ import annotations

import copy
import dataclasses
import re
from typing import Any

from transformers import CONFIG_MAPPING, PreTrainedConfig, ResNetConfig

HEADS, KV_HEADS, HEAD_DIM, LAYERS, VOCAB = 4, 2, 16, 2, 128
HIDDEN, INTERMEDIATE = HEADS * HEAD_DIM, 96
EXPERTS, POSITIONS, PATCH, FLAT_IMAGE, STAGED_IMAGE = 6, 64, 8, 32, 64
MAMBA_HEADS = 2 * HIDDEN // HEAD_DIM

AS_IT_IS = r"""
    hop_length | sampl\w*_rate | num_labels | .*(stride|kernel)\w* | num_channels | in_channels | in_chans
    | .*pretrain\w*size | num_(feat_extract|feature)_\w* | .*buckets | type_vocab_size | seed | .*_per_(step|frame)
    | \w*_factor | codebook_dim | (?!num_groups|upsample_groups)\w*_groups
"""
COUNTS = {  # name -> the largest number that is left; the first that fits
    r"(\w*_)?vocab(_size)?\w*|num_embeddings|codebook_size|num_code\w*vectors\w*|quantization_dim": VOCAB,
    r"mamba_n_heads|mamba_num_heads|n_mamba_heads": MAMBA_HEADS,
    r"\w*key_heads|linear_num_key_heads": KV_HEADS,
    r"\w*heads\w*|n_head|\w*_n_head": HEADS,
    r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_moe_experts|zero_expert_num": EXPERTS,
    r"num_experts_per_\w*|moe_(topk|top_k|k)|top_k|top_k_experts|num_selects|n_group|num_expert_group": 2,
    r"topk_group|first_k_dense_replace|num_dense_layers|num_nextn_predict_layers": 1,
    r"num_kv_shared_layers": 0,
    r"num_groups": 4,
    r"upsample_groups": HIDDEN,  # as many as channels
    r"mm_tokens_per_image": 4,
    r"context_size": 16,
    r"qk_(rope|nope)_head_dim|rotary_dim": HEAD_DIM // 2,
    r"\w*head_(dim|size)|attention_head_size|d_kv|mamba_(d_head|headdim)|kv_channels|dim_head|d_head": HEAD_DIM,
    r"\w*((?<!feat_extract_)layers|num_layer|n_layer|depth|n_blocks|num_blocks|num_mem_blocks)": LAYERS,
    r"\w*(layer_interval|_period|_interval|window_pattern|layer_freq|sparse_step)|cross_attention_frequency": 2,
    r"attn_layer_offset|expert_layer_offset|max_window_layers|insert_layer_id": 1,
    r"\w*(position|context_length|max_len|max_length|n_ctx|max_seq|max_source|max_target|mem_len)\w*": POSITIONS,
    r"(\w*_)?(sliding_window|attention_window|local_attention|window)(_size)?|\w*chunk_size": 8,
    r"(\w*_)?n_mels|num_mel_bins|feature_size|input_feat\w*|spectrogram_bins": 16,
    r"num_quer(ies|y_tokens)|num_latents|\w*n_latents|num_register\w*|latent_query_num": 5,
}
SWITCHED_OFF = {  # what a config leaves open, and the model cannot do without
    "n_routed_experts": EXPERTS, "num_experts_per_tok": 2, "topk_group": 1, "n_group": 1, "vocab_size": VOCAB,
    "head_dim": HEAD_DIM, "moe_num_shared_experts": 1, "n_shared_experts": 1, "num_shared_experts": 1,
    "prediction_length": 8, "attn_layer_indices": [1],
    "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
    "vocabulary_map": {"<image>": 99, **{f"IMGIMG{chr(65 + k // 10)}{chr(65 + k % 10)}Z": 60 + k for k in range(32)}},
}  # fmt: skip
HIDDEN_NAMES = re.compile(
    r"(\w+_)?(hidden_size|hidden_dim|d_model|n_embd|embed_dim|model_dim|hidden_channels|embedding_dim|dim|d_embed)"
    r"|out_hidden_size|output_channels|projection_(dim|size)|text_hidden_size|word_embed_proj_dim|embedding_size|emb_dim"
)
INTERMEDIATE_NAMES = re.compile(
    r"(\w+_)?(intermediate_size\w*|ffn_dim|ffn_size|mlp_dim|d_ff|n_inner|ffn_hidden_size|dim_feedforward"
    r"|feedforward_dim|linear_units|feed_forward_(hidden_)?size|intermediate_dim|feed_forward_dim|d_inner)"
)
WIDTH_NAMES = re.compile(
    r"\w*(dim|dims|size|sizes|channels|width|rank|features|filters|units|d_state|latent\w*|planes)|\w*_dim_\w*"
    r"|\w*_channel_list|\w*_dim_per_\w+|\w*_channels_\w*"
)
NO_WIDTHS = re.compile(
    r".*(image|patch|kernel|stride|window|pool|crop|grid|block|batch|chunk|step|merge|context|train|shape|tile|cache"
    r"|padding|feat_sizes|feature_sizes|tubelet|cnn_|period|in_size|input_channels|(?<!hidden_)input_size"
    r"|audio_channels|eval_size|max_size).*"
)
STAGES = re.compile(
    r"hidden_sizes|depths|embed_dims?|num_heads|encoder_hidden_sizes|layer_channels|num_blocks|stage_\w+"
    r"|embed_dim_per_stage|blocks_per_stage|(in|out)_channels|channels|base_attn_unit_dims"
)
SIZES = re.compile(r".*image_size|img_size|input_size")
TOKEN_ID = re.compile(r".*(_token_id|_token_index|_token_ids|_id|_idx|_index|_pad)")
PER_LAYER = re.compile(r"\w*(layer_types|layers_block_type|_types|no_rope_layers|layer_rope_theta|block_types)")
COUNTS_PER_STAGE = re.compile(
    r"depths|stage_\w*(layers|blocks)|blocks_per_stage|num_blocks|\w*num_block_repeats|layers"
)
LAYER_INDICES = re.compile(r"\w*(layers|indices|indexes|idxs|layer_ids|layer|_idx|block_index\w*)")
DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXCEPTIONS = {  # model type, or that of a config inside -> what no rule explains
    "efficientnet": {"width_coefficient": 0.25, "hidden_dim": 320},  # the stem and the head have widths in the code
    "align_vision_model": {"width_coefficient": 0.25, "hidden_dim": 320},
    "align": {"projection_dim": 320},
    "aria": {"projector_patch_to_query_dict": {16: 5}},
    "chameleon_vqgan": {"num_embeddings": 32},
    "depth_pro": {"patch_size": FLAT_IMAGE},
    "esm": {"pad_token_id": 1},
    "fun_asr_nano_adaptor": {"intermediate_size": HIDDEN // 4},
    "glmasr_encoder": {"intermediate_size": 4 * HIDDEN},  # of which the projector makes one token
    "voxtral_encoder": {"intermediate_size": 4 * HIDDEN},
    "llama4_vision_model": {"intermediate_size": 4 * HIDDEN},
    "florence_vision": {"projection_dim": HIDDEN},
    "mllama_vision_model": {"intermediate_layers_indices": [1], "vision_output_dim": 2 * HIDDEN},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "mamba_d_head": HEAD_DIM},
    "layoutlmv3": {"coordinate_size": 12, "shape_size": 8},  # four of the one and two of the other make the width
    "levit": {"patch_size": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lilt": {"hidden_size": 96, "intermediate_size": 144},  # made of six equal parts
    "mask2former": {"feature_size": HIDDEN, "mask_feature_size": HIDDEN},
    "muse_spark_audio": {"num_hidden_layers": 4},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "seggpt": {"merge_index": 0},
    "vibevoice_asr": {"acoustic_tokenizer_chunk_size": 6400},
    "xmod": {"default_language": "en_XX"},
    "efficientloftr": {"out_features": [16, 16, 32, 64]},  # left open by default
    "diffusion_gemma_text": {"num_experts": EXPERTS, "top_k_experts": 2, "moe_intermediate_size": 48},
    "clvp_encoder": {"num_attention_heads": 2},  # the rotary dimensions are at least 32
}
DEPTHS = ("num_hidden_layers", "num_layers", "depth", "n_layer")


def tiny_config(model_type: str) -> PreTrainedConfig:
    """The default config of this type, with everything that costs time or memory made small."""
    shrunk = shrink(CONFIG_MAPPING[model_type](), {})
    shrunk._attn_implementation = "eager"
    return shrunk


def shrink(config: PreTrainedConfig, tokens: dict[int, int]) -> PreTrainedConfig:
    """A smaller config of the same class.

    Args:
        config: is left as it is.
        tokens: special tokens that have their small numbers already, for all configs of a model; more are added.
    """
    if config.model_type == "timm_backbone":  # of another library; transformers has a ResNet of its own
        return _resnet(config)
    return _Shrinker(config, tokens).shrunk()


class _Shrinker:
    """The rules, for one config."""

    def __init__(self, config: PreTrainedConfig, tokens: dict[int, int]) -> None:
        self.config, self.tokens = config, tokens
        self.values = {name: value for name, value in vars(config).items() if not name.startswith("_")}
        self.staged = any(
            isinstance(value, (list, tuple))
            and len(value) > 1
            and isinstance(value[-1], int)
            and STAGES.fullmatch(name)
            for name, value in self.values.items()
        )
        self.depth, self.layers = self._depths()
        self.hidden = {
            value
            for name, value in self.values.items()
            if HIDDEN_NAMES.fullmatch(name) and isinstance(value, int) and value > 2 * HIDDEN
        }
        widths = [
            value for name, value in self.values.items() if HIDDEN_NAMES.fullmatch(name) and isinstance(value, int)
        ]
        self.factor = 4.0 if self.staged else max([*widths[:1], 256]) / HIDDEN

    def shrunk(self) -> PreTrainedConfig:
        """The smaller config."""
        fields = {field.name: field for field in dataclasses.fields(self.config) if field.init}
        usual = vars(type(self.config)())
        changed: dict[str, Any] = {}
        for name, value in self.values.items():
            if name not in fields:
                continue
            if name == "rope_parameters" and value == {} and "layer_types" in self.values:
                changed[name] = {kind: self._rope(None, 3) for kind in set(self.values["layer_types"])}
                continue
            derived = fields[name].default is None and not isinstance(value, PreTrainedConfig)
            derived = derived and not PER_LAYER.fullmatch(name) and name != "image_grid_pinpoints"
            if derived and value is not None and _same(value, usual.get(name)):
                continue  # made of other values, which are smaller now
            new = self._value(name, value)
            if isinstance(value, PreTrainedConfig) or not _same(new, usual.get(name)):
                changed[name] = new
        if (
            "mrope_section" in getattr(self.config, "ignore_keys_at_rope_validation", ())
            and "rope_parameters" in fields
            and self.values["rope_parameters"] != {}
        ):
            changed["rope_parameters"] = self._rope(changed.get("rope_parameters") or self.values["rope_parameters"], 3)
        indices = getattr(self.config, "_out_indices", None) and self.config.out_indices
        if indices and "out_indices" not in changed and list(indices) != list(type(self.config)().out_indices):
            changed["out_indices"] = indices if self.staged else sorted({min(each, self.layers) for each in indices})
        changed.update(EXCEPTIONS.get(self.config.model_type, {}))
        return type(self.config)(**changed)

    def _value(self, name: str, value: Any) -> Any:
        if isinstance(value, PreTrainedConfig):
            return shrink(value, self.tokens)
        if value is None:
            return self._left_open(name)
        if isinstance(value, bool):
            return value
        if TOKEN_ID.fullmatch(name) and not LAYER_INDICES.fullmatch(name):
            return self._token(value)
        kinds = {int: self._integer, list: self._sequence, tuple: self._sequence, float: self._float, dict: self._dict}
        rule = next((rule for kind, rule in kinds.items() if isinstance(value, kind)), None)
        return rule(name, value) if rule else value

    def _left_open(self, name: str) -> Any:
        """What to put where a config says nothing."""
        if name in ("image_token_id", "image_token_index", "audio_token_id"):
            return self._token(10**9 + len(name))
        if name != "rope_parameters" or "vocabulary_map" in self.values:
            return SWITCHED_OFF.get(name)
        return None

    def _float(self, name: str, value: float) -> float:
        return min(value, 2.0) if re.fullmatch(r"mlp_ratio|\w*expan(d|sion)_ratio", name) else value

    def _dict(self, name: str, value: dict) -> dict:
        return self._rope(value) if name == "rope_parameters" else value

    def _integer(self, name: str, value: int) -> int:
        """What the first rule says that has something to say."""
        for rule in (self._special, self._count, self._size):
            if (new := rule(name, value)) is not None:
                return new
        return self._width(name, value)

    def _special(self, name: str, value: int) -> int | None:
        if re.fullmatch(AS_IT_IS, name, re.VERBOSE) or (name == "window_size" and "downsample_rate" in self.values):
            return value
        if name == "window_size" and value > 100:
            return 4 * PATCH  # in pixels
        if name == "head_dim" and value == self.values.get("qk_rope_head_dim"):
            return HEAD_DIM // 2
        if name in DEPTHS:
            return min(value, self.layers)
        return MAMBA_HEADS if name == "num_heads" and "expand" in self.values else None

    def _count(self, name: str, value: int) -> int | None:
        if re.fullmatch(r"\w*(key_value|kv)_\w*heads|\w*kv_heads|\w*num_query_groups", name):
            queries = [
                each for other, each in self.values.items() if other != name and re.fullmatch(r"\w*heads", other)
            ]
            return min(value, HEADS if value in queries else KV_HEADS)
        for pattern, limit in COUNTS.items():
            if re.fullmatch(pattern, name):
                if self.staged and "heads" in pattern:
                    return value
                return min(value, 2 if self.staged and name == "window_size" else limit)
        return None

    def _size(self, name: str, value: int) -> int | None:
        if SIZES.fullmatch(name):
            return min(value, STAGED_IMAGE if self.staged else FLAT_IMAGE)
        if name == "patch_size":
            return min(value, 4 if self.staged else PATCH)
        if self.staged:
            return None
        if INTERMEDIATE_NAMES.fullmatch(name):
            return min(value, INTERMEDIATE)
        if HIDDEN_NAMES.fullmatch(name):
            return min(value, HIDDEN)
        return HIDDEN if value in self.hidden and re.fullmatch(r"\w*(input|output|in|out)_(size|dim)", name) else None

    def _width(self, name: str, value: int) -> int:
        if value <= 8 or not WIDTH_NAMES.fullmatch(name) or NO_WIDTHS.fullmatch(name):
            return value
        return max(8, round(value / self.factor / 8) * 8)

    def _sequence(self, name: str, value: list | tuple) -> list | tuple:
        found = list(value)
        if not value:
            return value
        if name == "image_grid_pinpoints":
            found = [[FLAT_IMAGE, 2 * FLAT_IMAGE], [2 * FLAT_IMAGE, FLAT_IMAGE]]
        elif PER_LAYER.fullmatch(name) and len(value) >= self.depth:
            kinds = [each for place, each in enumerate(value) if each not in value[:place]]
            found = (kinds + [kinds[-1]] * self.layers)[: self.layers]
        elif all(isinstance(each, int) and not isinstance(each, bool) for each in value):
            found = self._integers(name, found)
        return type(value)(found)

    def _integers(self, name: str, value: list[int]) -> list[int]:
        if COUNTS_PER_STAGE.fullmatch(name):
            return [min(each, LAYERS) for each in value]
        if LAYER_INDICES.fullmatch(name) and sorted(set(value)) == sorted(value):
            return self._indices(value)
        if SIZES.fullmatch(name):
            return [min(each, STAGED_IMAGE if self.staged else FLAT_IMAGE) for each in value]
        if name == "patch_size" and "patch_stride" not in self.values:
            return [min(each, PATCH) for each in value]
        if name == "patch_size" or "width_coefficient" in self.values:
            return value
        per_layer = len(value) == self.depth and len(value) > 4 and not self.staged
        rule = self._integer if per_layer else self._width
        return [rule(name, each) for each in (value[: self.layers] if per_layer else value)]

    def _indices(self, value: list[int]) -> list[int]:
        """Indices of layers, spread over those that are left as they were over all."""
        chosen = {
            max(each, -self.layers) if each < 0 else each * self.layers // max(self.depth, max(value) + 1)
            for each in value
        }
        return sorted(chosen)[1:] if len(chosen) == self.layers and len(value) < self.depth else sorted(chosen)

    def _token(self, value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(self._token(each) for each in value)
        if not isinstance(value, int) or value < VOCAB - 40:
            return value
        return self.tokens.setdefault(value, VOCAB - 1 - len(self.tokens) % 38)

    def _depths(self) -> tuple[int, int]:
        """How many layers there were, and how many are left: at least one of each type."""
        types = [
            each for name, each in self.values.items() if PER_LAYER.fullmatch(name) and isinstance(each, (list, tuple))
        ]
        dense = [self.values[name] for name in DEPTHS if isinstance(self.values.get(name), int)]
        kinds = max((len(set(map(repr, each))) for each in types), default=0)
        return (dense[0] if dense else 12), max(LAYERS, kinds)

    def _rope(self, value: dict | None, sections: int = 0) -> dict:
        new = copy.deepcopy(value) or {"rope_type": "default", "rope_theta": 10000.0}
        for part in [new, *(each for each in new.values() if isinstance(each, dict))]:
            if not all(isinstance(each, dict) for each in part.values()) and (sections or "mrope_section" in part):
                share = part.get("partial_rotary_factor", getattr(self.config, "partial_rotary_factor", None) or 1.0)
                half, count = int(HEAD_DIM * share) // 2, len(part.get("mrope_section", [0] * 3))
                part["mrope_section"] = [half // count + (place < half % count) for place in range(count)]
            for key in {"short_factor", "long_factor"} & set(part):
                part[key] = part[key][: HEAD_DIM // 2]
        return new


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, PreTrainedConfig) or isinstance(other, PreTrainedConfig):
        return one is other
    return type(one) is type(other) and one == other


def _resnet(config: PreTrainedConfig) -> PreTrainedConfig:
    shape = {"embedding_size": 16, "hidden_sizes": [32, 48, 64, 80], "depths": [1, 1, 1, 1]}
    indices = [each for each in config.out_indices or [4] if each > 0] or [4]
    return ResNetConfig(num_channels=config.num_channels, out_indices=[min(each, 4) for each in indices], **shape)
