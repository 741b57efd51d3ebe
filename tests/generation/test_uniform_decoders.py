"""layout='uniform' of models that generate: sizes found in the config, loaded by transformers alone."""

import copy
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import torch
import transformers as tr
from decoders import GENERATORS, GPT, MORE, PAIRED, SHAPE, generator, prompts
from safetensors.torch import load_file, save_file
from tiny import tiny_samples

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.storage.sizes import sized
from optimum_optin.storage.uniform import record_sizes

SCRIPT = Path(__file__).parents[1] / "generate_alone.py"
UNSIZED = ("bloom", "mpt")  # their classes take a fixed multiple of the hidden size
PRUNED = ("smollm", "gemma2", "gpt2")  # by a pruner; the others by masks
SIZED = [name for name in (*GENERATORS, *MORE) if name not in UNSIZED]
HEADS = ("num_attention_heads", "num_key_value_heads")
# name -> fields of heads, what must be written besides, of how many heads a multiple must stay; fields of neurons
EXPECTED = {
    "llama": (HEADS, {}, 2, "intermediate_size"),  # LlamaConfig wants a hidden size that is a multiple of the heads
    "smollm": (HEADS, {}, 1, "intermediate_size"),
    "mistral": (HEADS, {}, 1, "intermediate_size"),
    "qwen3": (HEADS, {}, 1, "intermediate_size"),
    "gemma2": (HEADS, {}, 2, "intermediate_size"),
    "gemma3": (HEADS, {}, 2, "intermediate_size"),
    "gpt2": ((), {}, 1, "n_inner"),
    "gpt_neox": ((), {}, 1, "intermediate_size"),
    "opt": ((), {}, 1, "ffn_dim"),
    "phi": (HEADS, {"head_dim": 8}, 1, "intermediate_size"),
    "t5": ((), {}, 1, "d_ff"),  # num_heads is one for all attention of encoder and decoder
    "t5 gated": ((), {}, 1, "d_ff"),
    "umt5": ((), {}, 1, "d_ff"),
    "bart": ((), {}, 1, "encoder_ffn_dim"),
    "mbart": ((), {}, 1, "encoder_ffn_dim"),
    "marian": ((), {}, 1, "encoder_ffn_dim"),
    "pegasus": ((), {}, 1, "encoder_ffn_dim"),
    "whisper": ((), {}, 1, "encoder_ffn_dim"),
    "qwen2": (HEADS, {}, 1, "intermediate_size"),
    "phi3": (HEADS, {"head_dim": 8}, 1, "intermediate_size"),
    "falcon": ((), {}, 1, "ffn_hidden_size"),
    "mt5": ((), {}, 1, "d_ff"),
}


@cache
def found(name):
    """A model, and its groups with the fields that were found."""
    model = generator(name)
    return model, sized(model, find_groups(model))


def uniform(name, folder):
    """A model pruned with layout='uniform', saved to a folder."""
    model, groups = found(name)
    if name in PRUNED:
        config = OptinConfig(flops=0.7, probes=4, rows=16, search="ranked", layout="uniform", round_to={"neurons": 8})
        return OptinPruner(model).prune(tiny_samples(), config, save_dir=folder)
    kept = {group.key: group.units // 2 if group.config_fields else group.units for group in groups}
    drawn = torch.Generator().manual_seed(0)
    masks = {each.key: torch.randperm(each.units, generator=drawn) < kept[each.key] for each in groups}
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    record_sizes(pruned, groups, masks)
    pruned.save_pretrained(folder)
    return pruned


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """name -> pruned model, and name -> what a process without this package lets the saved one generate."""
    place = tmp_path_factory.mktemp("uniform")
    models = {name: uniform(name, place / name) for name in SIZED}
    inputs = {f"{name}.{key}": value for name in SIZED for key, value in prompts(name).items()}
    save_file(inputs, place / "inputs")
    arguments = [sys.executable, SCRIPT, place / "results", place / "inputs", *(place / name for name in SIZED)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(arguments, env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return models, load_file(place / "results")


@pytest.mark.parametrize("name", SIZED)
def test_transformers_alone_generates_the_same(name, pruned):
    models, alone = pruned
    options = {"do_sample": False, "max_new_tokens": 10, "min_new_tokens": 10}
    assert torch.equal(alone[name], models[name].generate(**prompts(name), **options))
    dense, _ = found(name)
    assert not torch.equal(alone[name], dense.generate(**prompts(name), **options))
    assert sum(map(torch.numel, models[name].parameters())) < sum(map(torch.numel, dense.parameters()))
    assert not hasattr(models[name].config, "quantization_config")


@pytest.mark.parametrize("name", PRUNED)
def test_sizes_are_multiples(name, pruned):
    config, dense = pruned[0][name].config, GENERATORS[name]
    fields, _, step, neurons = EXPECTED[name]
    assert getattr(config, neurons) % 8 == 0
    assert any(getattr(config, field) < getattr(dense, field) for field in (*fields, neurons))
    for field in fields:
        assert getattr(config, field) % (step * getattr(dense, field) // dense.num_key_value_heads) == 0


@pytest.mark.parametrize("name", EXPECTED)
def test_fields_that_are_found(name):
    _, groups = found(name)
    heads, values, step, neurons = EXPECTED[name]
    of = {group.role: group for group in reversed(list(groups))}
    assert (of["heads"].config_fields, of["heads"].config_values, of["heads"].step) == (heads, values, step)
    assert of["neurons"].config_fields == (neurons,)
    if name in PAIRED and "encoder" in neurons:
        last = [group for group in groups if group.role == "neurons"][-1]
        assert last.config_fields == (neurons.replace("encoder", "decoder"),)


def test_a_size_that_the_config_leaves_open_is_written():
    model = tr.GPT2LMHeadModel(tr.GPT2Config(**GPT, n_positions=64))
    assert model.config.n_inner is None
    groups = sized(model, find_groups(model))
    masks = {group.key: torch.arange(group.units) < (40 if group.width == 1 else group.units) for group in groups}
    rewrite(model, groups, masks)
    record_sizes(model, groups, masks)
    assert model.config.n_inner == 40
    assert type(model)(model.config).transformer.h[2].mlp.c_proj.weight.shape == (40, 32)


def test_a_class_that_computes_with_another_number_has_no_fields():
    """Shapes alone do not tell: such heads would be scaled by another number than those that were cut."""

    class Scaled(tr.LlamaForCausalLM):
        def __init__(self, config):
            super().__init__(config)
            for layer in self.model.layers:
                layer.self_attn.scaling = config.num_attention_heads**-0.5

    model = Scaled(tr.LlamaConfig(**SHAPE)).eval()
    fields = {group.role: group.config_fields for group in sized(model, find_groups(model))}
    assert fields == {"heads": (), "neurons": ("intermediate_size",)}


@pytest.mark.parametrize("name", UNSIZED)
def test_a_class_without_such_a_field_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"cannot prune this '{name}' model: no attribute of its config"):
        OptinPruner(generator(name)).check(OptinConfig(flops=0.7, layout="uniform"))
