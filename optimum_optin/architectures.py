"""The table of architectures: where a model type keeps its heads and neurons.

A new architecture is a row: one `register_architecture` call, here or in a user's own code. Paths are
relative to the layer (sublayers) or to the base model (layers). See docs/source/concepts/extending.mdx.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from .groups import HEADS, NEURONS, Group, Producer, attribute


@dataclass(frozen=True)
class Sublayer:
    """One kind of group inside every layer of a stack; made by `heads` and `neurons`.

    Args:
        role: `"heads"` or `"neurons"`.
        consumer: path of the linear that reads the units.
        producers: the linears that write them.
        width: consumer input columns per unit, or the path of the attribute that holds the number.
        core: path of the attention module, replaced when all its heads go.
        counters: attributes to keep true, path -> `"units"` or `"features"` (units * width).
        tables: see `Group`; those that a model does not have are passed over.
        shared_bias: see `Group`; an argument of the layer itself has no path before its name.
        windowed: see `Group`.
        stream: see `Group`.
        scale: see `Group`.
        normed_output: see `Group`.
        config_fields: see `Group`.
        otherwise: what a layer has instead in models that lack one of these linears.
    """

    role: str
    consumer: str
    producers: tuple[Producer, ...]
    width: int | str = 1
    core: str | None = None
    counters: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    shared_bias: str | None = None
    windowed: bool = False
    stream: str | None = None
    scale: str | None = None
    normed_output: bool = False
    config_fields: tuple[str, ...] = ()
    otherwise: Sublayer | None = None


@dataclass(frozen=True)
class Stack:
    """A list of like layers.

    Args:
        layers: path of the list below the base model, e.g. `"encoder.layer"`; of a list for each stage, e.g.
            `"encoder.layers.*.blocks"`.
        sublayers: what each layer holds, in order of execution.
        name: the stack's name in masks and on disk; distinct for each stack of an architecture.
        pre_norm: whether layers normalise the input of a sublayer, rather than its sum with the residual.
        between: path of what ends a stage, e.g. `"encoder.layers.*.downsample"`; a layer without units.
        keys: path of the linear that makes the keys in each layer, where tokens may be merged between layers: nothing
            in a layer may depend on where a token is.
        reads: name of the model's input that its tokens are made of, in a model of several; `None` for the main input.
    """

    layers: str
    sublayers: tuple[Sublayer, ...]
    name: str = "layers"
    pre_norm: bool = False
    between: str | None = None
    keys: str | None = None
    reads: str | None = None


_ARCHITECTURES: dict[str, tuple[Stack, ...]] = {}


def register_architecture(model_type: str, *stacks: Stack) -> None:
    """Make a model type prunable.

    Args:
        model_type: `config.model_type` of the model, e.g. `"bert"`.
        stacks: its layer lists in order of execution.

    Raises:
        ValueError: no stack, two stacks of one name, a name with a dot, or two sublayers of one role in a layer.
    """
    names = [getattr(stack, "name", stack) for stack in stacks]
    fit = stacks and all(isinstance(stack, Stack) and "." not in stack.name for stack in stacks)
    if not fit or len(set(names)) != len(names):
        raise ValueError(
            f"architecture {model_type!r} needs one or more Stack objects of distinct names without dots, got {names}."
        )
    for stack in stacks:
        roles = [sublayer.role for sublayer in stack.sublayers]
        if len(set(roles)) != len(roles):  # masks and scores are told apart by layer and role
            raise ValueError(
                f"architecture {model_type!r}: a layer of {stack.name!r} must have one sublayer of each role, got "
                f"{', '.join(roles)}."
            )
    _ARCHITECTURES[model_type] = stacks


def known_architectures() -> list[str]:
    """The registered model types, sorted."""
    return sorted(_ARCHITECTURES)


def heads(core: str, width: str, producers: Iterable[Producer | str], consumer: str, **options) -> Sublayer:
    """Attention heads of the module at `core`; see `Sublayer`."""
    return Sublayer(HEADS, consumer, _producers(producers), width, core, **options)


def neurons(producers: Iterable[Producer | str], consumer: str, **options) -> Sublayer:
    """FFN neurons; for a gated MLP a neuron is the gate/up pair. See `Sublayer`."""
    return Sublayer(NEURONS, consumer, _producers(producers), **options)


def stack_inputs(model: nn.Module) -> dict[str, str]:
    """The model's stacks in order of execution: name -> the model's input that its tokens are made of."""
    return {stack.name: stack.reads or model.main_input_name for stack in _stacks_of(model)}


def find_layers(model: nn.Module) -> dict[str, str]:
    """The model's layers in order of execution: name (`"layers.0"`) -> module path."""
    layers = {}
    for stack in _stacks_of(model):
        path = _base_prefix(model) + stack.layers
        before, staged, after = path.partition(".*")
        try:
            stages = range(len(model.get_submodule(before))) if staged else [0]
            lists = [f"{before}.{stage}{after}" if staged else path for stage in stages]
            paths = [[f"{each}.{index}" for index in range(len(model.get_submodule(each)))] for each in lists]
        except AttributeError as error:
            raise ValueError(f"this {model.config.model_type!r} model has no layers at {path}: {error}.") from error
        count = 0
        for stage, found in zip(stages, paths, strict=True):
            layers |= {f"{stack.name}.{count + index}": layer for index, layer in enumerate(found)}
            count += len(found)
            end = stack.between and _base_prefix(model) + stack.between.replace("*", str(stage))
            if end and _holds(model, end):
                layers[f"{stack.name}.between.{stage}"] = end
    return layers


def find_groups(model: nn.Module) -> list[Group]:
    """All groups of removable units, in order of execution.

    A sublayer that was pruned away entirely has no units left and is not listed.

    Raises:
        ValueError: the model type is not registered, or the model does not look as its row says.
    """
    stacks = {stack.name: stack for stack in _stacks_of(model)}
    groups = []
    for layer, path in find_layers(model).items():
        stack = stacks.get(layer.rpartition(".")[0])
        for sublayer in stack.sublayers if stack else ():  # what ends a stage has no units
            group = _group(model, layer, path, sublayer)
            if group is not None:
                groups.append(replace(group, pre_norm=stack.pre_norm))
    return groups


def key_projections(model: nn.Module) -> dict[str, str]:
    """Layer -> path of the linear that makes its keys, gone or not; see `Stack.keys`.

    Raises:
        ValueError: tokens of this architecture cannot be merged.
    """
    stacks = _stacks_of(model)
    if len(stacks) > 1 or stacks[0].keys is None:
        able = [name for name, row in sorted(_ARCHITECTURES.items()) if all(stack.keys for stack in row)]
        partly = [name for name, row in sorted(_ARCHITECTURES.items()) if any(stack.keys for stack in row)]
        able += [f"{name} (its classifiers of images)" for name in partly if name not in able]
        raise ValueError(
            f"tokens of this {model.config.model_type!r} model cannot be merged; those of {', '.join(able)} can. The "
            "others are no models of images alone, or attention in them depends on where a token is (windows, relative "
            "or rotary positions): set tokens='none'."
        )
    return {layer: f"{path}.{stacks[0].keys}" for layer, path in find_layers(model).items()}


def _group(model: nn.Module, layer: str, path: str, sublayer: Sublayer) -> Group | None:
    if sublayer.otherwise and not _has_linears(model.get_submodule(path), sublayer):
        return _group(model, layer, path, sublayer.otherwise)
    try:
        consumer = model.get_submodule(f"{path}.{sublayer.consumer}")
        if consumer.in_features == 0:
            return None
        width = sublayer.width if isinstance(sublayer.width, int) else attribute(model, f"{path}.{sublayer.width}")
        for producer in sublayer.producers:
            _check_producer(model.get_submodule(f"{path}.{producer.path}"), producer, consumer)
        if not isinstance(width, int) or width < 1 or consumer.in_features % width:
            raise AttributeError(f"{consumer.in_features} inputs of {sublayer.consumer} are no multiple of {width!r}")
    except AttributeError as error:
        raise ValueError(
            f"{layer} of this {model.config.model_type!r} model is not built as its architecture row says: {error}."
        ) from error
    features = {"units": 1, "features": width}
    return Group(
        layer=layer,
        role=sublayer.role,
        units=consumer.in_features // width,
        width=width,
        consumer=f"{path}.{sublayer.consumer}",
        producers=tuple(Producer(f"{path}.{producer.path}", producer.parts) for producer in sublayer.producers),
        core=sublayer.core and f"{path}.{sublayer.core}",
        counters={f"{path}.{name}": features[kind] for name, kind in sublayer.counters.items()},
        tables={
            f"{path}.{name}": dim for name, dim in sublayer.tables.items() if _holds(model.get_submodule(path), name)
        },
        shared_bias=sublayer.shared_bias and f"{path}.{sublayer.shared_bias}",
        windowed=sublayer.windowed,
        stream=sublayer.stream and f"{path}.{sublayer.stream}",
        scale=sublayer.scale and f"{path}.{sublayer.scale}",
        normed_output=sublayer.normed_output,
        config_fields=sublayer.config_fields,
    )


def _has_linears(layer: nn.Module, sublayer: Sublayer) -> bool:
    return all(_holds(layer, path) for path in (sublayer.consumer, *(each.path for each in sublayer.producers)))


def _holds(module: nn.Module, path: str) -> bool:
    """Whether there is something at a path, module or parameter."""
    for name in path.split("."):
        module = getattr(module, name, None)
    return module is not None


def _check_producer(module: nn.Module, producer: Producer, consumer: nn.Module) -> None:
    if module.out_features != producer.parts * consumer.in_features:
        raise AttributeError(
            f"{producer.path} writes {module.out_features} features for a consumer of "
            f"{producer.parts} x {consumer.in_features}"
        )


def row_of(model_type: str | None) -> tuple[Stack, ...]:
    """The stacks that a model type was registered with.

    Raises:
        ValueError: it was not.
    """
    if model_type not in _ARCHITECTURES:
        raise ValueError(
            f"unknown architecture {model_type!r}; known: {', '.join(known_architectures())}. "
            "A few lines add one, here for a model built like BERT:\n"
            "    from optimum_optin import Stack, heads, neurons, register_architecture\n"
            f"    register_architecture({model_type!r}, Stack('encoder.layer', (\n"
            "        heads('attention.self', 'attention.self.attention_head_size',\n"
            "              ['attention.self.query', 'attention.self.key', 'attention.self.value'],\n"
            "              'attention.output.dense'),\n"
            "        neurons(['intermediate.dense'], 'output.dense'),\n"
            "    )))\n"
            "See docs/source/concepts/extending.mdx."
        )
    return _ARCHITECTURES[model_type]


def _stacks_of(model: nn.Module) -> tuple[Stack, ...]:
    config = getattr(model, "config", None)
    model_type = getattr(config, "model_type", None)
    if model_type == "timm_wrapper" and model_type not in _ARCHITECTURES:
        raise ValueError(
            "models of timm are not supported: load a transformers checkpoint of the same weights (ViT, DeiT, BEiT, "
            f"DINOv2, Swin, ...); known: {', '.join(known_architectures())}."
        )
    if model_type not in _ARCHITECTURES and hasattr(config, "vision_config"):
        prefix = type(config).__name__.removesuffix("Config")
        raise ValueError(
            f"this {model_type!r} model has towers of their own: load one by {prefix}VisionModel.from_pretrained or "
            f"the like, and prune that; known: {', '.join(known_architectures())}."
        )
    stacks = row_of(model_type)
    # A classifier of images has one tower of a dual model.
    there = [stack for stack in stacks if _holds(model, _base_prefix(model) + stack.layers.partition(".*")[0])]
    stacks = tuple(there) or stacks
    if getattr(model.config, "is_decoder", False):
        raise ValueError(
            f"this {model_type!r} model is set up as a decoder (is_decoder=True); its row is for encoders."
        )
    return stacks


def _base_prefix(model: nn.Module) -> str:
    if getattr(model, "base_model", model) is not model:
        return f"{model.base_model_prefix}."
    starts = [stack.layers.partition(".*")[0] for stack in row_of(model.config.model_type)]
    if any(_holds(model, start) for start in starts):
        return ""
    # A class of the user's own may call its base model anything.
    inside = [path for path, module in model.named_modules() if any(_holds(module, start) for start in starts)]
    return f"{inside[0]}." if len(inside) == 1 else ""


def _part_of_a_dual_model(name: str, reads: str, tower: Stack) -> Stack:
    """The stack of a tower that lives in the module, and by the config, of this name."""

    def placed(sublayer: Sublayer) -> Sublayer:
        fields = tuple(f"{name}_config.{field}" for field in sublayer.config_fields)
        return replace(sublayer, config_fields=fields)

    sublayers = tuple(map(placed, tower.sublayers))
    return replace(tower, name=name, reads=reads, layers=f"{name}_model.{tower.layers}", sublayers=sublayers)


def _producers(producers: Iterable[Producer | str]) -> tuple[Producer, ...]:
    return tuple(Producer(producer) if isinstance(producer, str) else producer for producer in producers)


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
        pre_norm=True,
    ),
)

_QKV = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
_VIT_FFN = neurons(["mlp.fc1"], "mlp.fc2", config_fields=("intermediate_size",))

_VIT = Stack(
    "layers",
    (heads("attention", "attention.head_dim", _QKV, "attention.o_proj"), _VIT_FFN),
    pre_norm=True,
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
                # A model has one of both: a table in every layer, or one for all, added to the mask.
                tables={"relative_position_bias.relative_position_bias_table": 1},
                shared_bias="attention_mask",
                scale="lambda_1",
            ),
            replace(_VIT_FFN, scale="lambda_2"),
        ),
        pre_norm=True,
    ),
)

_DINOV2 = Stack(
    "encoder.layer",
    (
        heads("attention", "attention.head_dim", _QKV, "attention.o_proj", scale="layer_scale1.lambda1"),
        # The config has a whole number, mlp_ratio, in place of a size.
        neurons(
            ["mlp.fc1"],
            "mlp.fc2",
            scale="layer_scale2.lambda1",
            otherwise=neurons(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj", scale="layer_scale2.lambda1"),
        ),
    ),
    pre_norm=True,
    keys="attention.k_proj",
)

for _model_type in ("dinov2", "dinov2_with_registers"):
    register_architecture(_model_type, _DINOV2)

_DINOV3_FFN = {"scale": "layer_scale2.lambda1", "config_fields": ("intermediate_size",)}

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
                scale="layer_scale1.lambda1",
            ),
            neurons(
                ["mlp.gate_proj", "mlp.up_proj"],
                "mlp.down_proj",
                otherwise=neurons(["mlp.up_proj"], "mlp.down_proj", **_DINOV3_FFN),
                **_DINOV3_FFN,
            ),
        ),
        pre_norm=True,
    ),
)

_TOWER_HEADS = heads(
    "self_attn",
    "self_attn.head_dim",
    ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "self_attn.out_proj",
    counters={"self_attn.num_heads": "units"},
)

_CLIP_TOWER = Stack("encoder.layers", (_TOWER_HEADS, _VIT_FFN), pre_norm=True)
_KEYS = "self_attn.k_proj"

for _model_type in ("clip_text_model", "siglip_text_model"):
    register_architecture(_model_type, _CLIP_TOWER)

register_architecture("clip_vision_model", replace(_CLIP_TOWER, keys=_KEYS))

# The pooling head, which stays whole, reads intermediate_size as well.
_SIGLIP_VISION_TOWER = replace(_CLIP_TOWER, sublayers=(_TOWER_HEADS, replace(_VIT_FFN, config_fields=())))

register_architecture("siglip_vision_model", replace(_SIGLIP_VISION_TOWER, keys=_KEYS))

# Both towers, or in a classifier of images one of them. What a uniform layout cannot cut in one, it cuts in none.
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
            neurons(["mlp.fc1"], "mlp.fc2", stream="layernorm_after"),
        ),
        pre_norm=True,
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
                normed_output=True,
            ),
            neurons(["intermediate.dense"], "output.dense", normed_output=True),
        ),
        between="encoder.layers.*.downsample",
    ),
)
