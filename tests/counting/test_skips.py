"""Modules that have lost all their units do not run: found, proved, saved, loaded, exported."""

import copy
import json

import pytest
import torch
import transformers as tr
from decoders import GENERATORS, PAIRED, auto_of, generator, prompts, real
from tiny import load, output_of, perturbed, tiny_batch, tiny_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import Transformer

from optimum_optin import OptinConfig, find_groups, load_pruned
from optimum_optin.editing.masking import masked
from optimum_optin.editing.stand_ins import StandIn
from optimum_optin.editing.surgery import rewrite
from optimum_optin.exporting.empty import empty_values
from optimum_optin.plain_modules.saving import save_module
from optimum_optin.readiness import proved_groups
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

CONFIG = OptinConfig(min_heads=0)
# model -> modules that stand-ins are in the place of
CASES = {
    "bert": ["1.attention.self", "2.attention.self", "2.intermediate"],
    "vit": ["1.attention", "2.attention", "2.mlp"],
    "swinv2": ["0.blocks.1.attention.self", "1.blocks.0.intermediate"],
    "llama": ["1.self_attn", "2.self_attn", "2.mlp"],
    "gpt2": ["1.attn", "2.attn", "2.mlp"],
    "t5": ["encoder.block.1.layer.1.DenseReluDense"],
    "bart": ["decoder.layers.1.self_attn", "decoder.layers.1.encoder_attn", "encoder.layers.1.self_attn"],
}
# What writes and what reads units lie apart in these, and hand on nothing from one to the other, but for graphs.
APART = ("bert", "swinv2", "bart")


class SeesEmpty(TorchDispatchMode):
    """Notes the operations that take or return a tensor without elements."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        if any(isinstance(each, torch.Tensor) and each.numel() == 0 for each in tree_leaves((args, kwargs, output))):
            self.seen.append(str(function))
        return output


def emptied(groups, heads=(".1.heads", ".2.heads", ".1.encoder_attn_heads")):
    """Masks without the heads of the second and third layers, and the neurons of the third (the second, of two)."""
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    last = "1.neurons" if not any(".2." in key for key in masks) else ".2.neurons"
    for group in groups:
        if group.least == 0 and group.key.endswith((*heads, last)):
            masks[group.key][:] = False
        else:
            masks[group.key][0] = False
    return masks


def case(name):
    """A model, its inputs, and what runs it."""
    if name not in GENERATORS:
        return (model := tiny_model(name)), tiny_batch(model)
    start = {"decoder_input_ids": torch.tensor([[3, 4]] * 2)} if name in PAIRED else {}
    return generator(name), {**prompts(name), **start, "use_cache": False}  # a cache begins with empty tensors


def loaded(name, model, folder):
    model.save_pretrained(folder)
    return (auto_of(name).from_pretrained(folder) if name in GENERATORS else load(model, folder)).eval()


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_what_lost_all_units_does_not_run(name, tmp_path):
    model, batch = case(name)
    groups = proved_groups(model, CONFIG)
    masks = emptied(groups)
    with masked(model, groups, masks):
        expected = output_of(model, batch)
    model = copy.deepcopy(model)  # generators share their configs
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    again = loaded(name, model, tmp_path)
    for each in (model, again):
        found = {path: module for path, module in each.named_modules() if isinstance(module, StandIn)}
        assert all(any(f".{path}".endswith(f".{end}") for path in found) for end in CASES[name])
        with SeesEmpty() as empty:
            output = output_of(each, batch)
        assert not empty.seen or name in APART
        torch.testing.assert_close(real(output, batch), real(expected, batch), rtol=1e-4, atol=1e-5)
    assert not empty_values(torch.export.export(again, (), kwargs=batch))
    # A second pruning finds what is left by the names that it had.
    left = {group.key: group.units for group in find_groups(again)}
    if name != "bart":  # whose only attention left in a layer is called its heads
        assert left == {group.key: int(masks[group.key].sum()) for group in groups if masks[group.key].any()}


class Returning(nn.Module):
    """A feed-forward network that adds its input, so that it is no constant, in a list that numbers it."""

    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(32, 48), nn.Linear(32, 48), nn.Linear(48, 32)

    def forward(self, x):
        return x + self.down(self.gate(x).sigmoid() * self.up(x))


class Adding(nn.Module):
    def __init__(self, layers=2):
        super().__init__()
        self.embed, self.head = nn.Embedding(50, 32), nn.Linear(32, 5)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), Returning()) for _ in range(layers))

    def forward(self, token_ids):
        x = self.embed(token_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@pytest.mark.parametrize("kind", [Adding, Transformer])
@torch.no_grad()
def test_of_a_module_that_returns_more_those_that_write_are_skipped(kind, tmp_path):
    dense = perturbed(kind()).eval()
    model, ids = copy.deepcopy(dense), torch.arange(12).view(2, 6)
    groups = find_groups(model, {"token_ids": ids[:1]})
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks["blocks.1.neurons" if "blocks.1.neurons" in masks else "layers.1.neurons"][:] = False
    with masked(model, groups, masks):
        expected = model(ids)
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    save_module(model, tmp_path, dense)
    for each in (model, load_pruned(kind, tmp_path)):
        paths = [path for path, module in each.named_modules() if getattr(module, "in_graphs", False)]
        assert paths == (["blocks.1.1.up", "blocks.1.1.gate"] if kind is Adding else ["blocks.1.up"])
        torch.testing.assert_close(each(ids), expected, rtol=1e-5, atol=1e-5)
        assert not empty_values(torch.export.export(each, (ids,)))


def test_what_comes_before_gets_a_gradient_of_zero():
    """As wrappers for several processes ask for one of every parameter."""
    model, batch = case("llama")
    groups = find_groups(model)
    rewrite(model, groups, emptied(groups))
    model.train()
    model(**batch).logits.square().sum().backward()
    norm = model.model.layers[1].input_layernorm
    assert isinstance(model.model.layers[1].self_attn, StandIn)
    assert torch.equal(norm.weight.grad, torch.zeros_like(norm.weight))


def test_attention_that_nothing_can_stand_in_for_keeps_a_head():
    """BLOOM's adds the residual stream itself, and cannot make heads of what stands in for its queries."""
    groups = find_groups(generator("bloom"))
    assert {(group.least, group.cut.skips) for group in groups if group.role == "heads"} == {(1, ())}


def test_without_a_trial_nothing_is_skipped():
    """What a row says is tried before it is cut; a model that is not run loses what it can without."""
    groups = find_groups(tiny_model())
    assert not any(group.cut.skips for group in groups if group.role == "neurons")
    model = tr.AutoModelForSequenceClassification.from_config(tiny_model().config).eval()
    groups = proved_groups(model, CONFIG)
    assert all(group.cut.skips for group in groups)


@pytest.mark.parametrize("name", ["bert", "vit"])
@torch.no_grad()
def test_folders_in_which_only_attention_was_removed_load(name, tmp_path):
    """They name the linear inside alone, as all that was removed was given and returned the same."""
    model, batch = case(name)
    groups = find_groups(model)
    masks = emptied(groups, heads=(".1.heads",))
    rewrite(model, groups, masks)
    record_structure(model, structure_of(groups, masks), groups)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    left = config["quantization_config"].pop("stand_ins")
    config["quantization_config"]["removed"] = {path: each["reader"] for path, each in left.items()}
    assert len(left) == 1
    (tmp_path / "config.json").write_text(json.dumps(config))
    again = load(model, tmp_path).eval()
    assert torch.equal(output_of(again, batch), output_of(model, batch))
    again.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["quantization_config"]["stand_ins"] == left
