"""What discovery cannot deal with is refused, or left whole with a reason; models are as before, whatever happens."""

import importlib
import re

import pytest
import torch
import torch.nn.functional as F
import transformers as tr
from test_untouched import _attributes, state_of
from torch import nn
from torch.nn.utils import parametrizations, prune
from toys import Block, Pictures, TorchEncoder, Transformer, perturbed, token_ids

from optimum_optin import OptinConfig, OptinPruner, check_architecture, find_groups
from optimum_optin.discovery.discover import discover
from optimum_optin.running.forward import run_model
from optimum_optin.tracing import cache

SHAPE = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
ALL = {f"layers.{layer}.{role}" for layer in (0, 1) for role in ("heads", "neurons")}


@pytest.fixture(autouse=True)
def _no_cache():
    cache.forget()


def llama():
    return perturbed(tr.LlamaModel(tr.LlamaConfig(num_key_value_heads=2, **SHAPE)))


def toy():
    return perturbed(Transformer())


def found(model, sample=None):
    return {group.key for group in find_groups(model, sample or token_ids())}


def seen(module):
    """All that can be seen of a plain module, and of PyTorch's random numbers."""
    return {
        "weights": {name: (id(each), each.tolist()) for name, each in module.state_dict(keep_vars=True).items()},
        "gradients": {name: each.requires_grad for name, each in module.named_parameters()},
        "modules": {path: (id(each), _attributes(each)) for path, each in module.named_modules()},
        "random": torch.get_rng_state().tolist(),
    }


# Modes and passes


def test_a_model_in_training_mode_is_found_the_same_and_stays_in_it():
    model = perturbed(tr.GPT2Model(tr.GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)))
    expected = {group.key: group.cut for group in find_groups(model)}
    other = tr.GPT2Model(model.config).train()  # with a dropout of 0.1
    before = state_of(other)
    assert {group.key: group.cut for group in find_groups(other)} == expected
    assert state_of(other) == before and all(module.training for module in other.modules())


class Noisy(Transformer):
    def forward(self, token_ids):
        return self.head(F.dropout(self.blocks[0](self.embed(token_ids)), 0.1, training=True).mean(1))


def test_a_model_that_draws_in_each_pass_is_refused_with_the_place():
    proof = check_architecture(perturbed(Noisy()), token_ids())
    assert not proof.proved and "random numbers are drawn there" in proof.problem
    masking = tr.ViTMAEConfig(
        **{name: size for name, size in SHAPE.items() if name.startswith(("hidden", "num", "inter"))},
        image_size=16,
        patch_size=4,
    )
    with pytest.raises(ValueError, match="two passes of one sample.*first in embeddings: random numbers are drawn"):
        OptinPruner(perturbed(tr.ViTMAEModel(masking))).check()


# Weights


def test_weights_without_values_are_named():
    model = toy()
    model.blocks[1].up.to("meta")
    with pytest.raises(ValueError, match=r"weight blocks\.1\.up\.weight is on the meta device, without values"):
        check_architecture(model, token_ids())
    with pytest.raises(ValueError, match=r"blocks\.1\.up\.weight is on the meta device, without values"):
        find_groups(model, token_ids())


class Quantized(nn.Module):
    """A linear whose weight is kept in 8 bits."""

    def __init__(self, linear):
        super().__init__()
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x):
        return F.linear(x, self.weight * self.scale, self.bias)


class Adapted(nn.Module):
    """A linear with a low-rank adapter."""

    def __init__(self, linear):
        super().__init__()
        self.base = linear
        self.down, self.up = nn.Linear(linear.in_features, 2, bias=False), nn.Linear(2, linear.out_features, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def put(model, change):
    model.blocks[1].up = change(model.blocks[1].up)
    return model


def test_what_is_kept_in_8_bits_is_left_whole():
    groups = find_groups(put(toy(), Quantized), token_ids())
    assert {group.key for group in groups} == ALL - {"layers.1.neurons"}
    assert any("layers.1.neurons" in name or "blocks.1" in name for name in groups.left_whole)


def test_an_adapter_goes_along_with_what_it_adapts():
    proof = check_architecture(perturbed(put(Transformer(), Adapted)), token_ids())
    assert not any(each.cut for each in proof.groups), "a rank of the adapter is a unit of its own"
    (wide,) = [each.group for each in proof.groups if each.group.layer == "layers.1" and each.group.units == 48]
    assert {part.tensor for part in wide.cut.writes} >= {"blocks.1.up.base.weight", "blocks.1.up.up.weight"}


def _parametrized(linear):
    return parametrizations.weight_norm(linear)


def _hooked(linear):
    return prune.random_unstructured(linear, "weight", 0.3)


def test_a_weight_that_is_computed_from_others_is_left_whole_and_never_cut():
    groups = find_groups(put(toy(), _parametrized), token_ids())  # PyTorch crashes on a weight norm of no rows
    assert {group.key for group in groups} == ALL - {"layers.1.neurons"}
    assert re.search(
        r"computed from blocks\.1\.up\.parametrizations.*remove param",
        groups.left_whole["blocks.1.up.parametrizations.weight, blocks.1.up"],
    )


def test_a_model_that_cannot_be_copied_is_refused_with_what_to_do():
    with pytest.raises(ValueError, match="cannot be copied.*prune.remove"):
        find_groups(put(toy(), _hooked), token_ids())


def test_adapters_and_parametrizations_in_a_model_of_transformers_are_refused_before_it_is_traced(monkeypatch):
    monkeypatch.setattr(importlib.import_module("optimum_optin.discovery.discover"), "trace", None)
    model = llama()
    _parametrized(model.layers[1].mlp.up_proj)
    with pytest.raises(ValueError, match=r"the weight of layers\.1\.mlp\.up_proj is computed from others"):
        check_architecture(model)


def test_a_shared_module_is_one_group_and_a_shared_weight_is_left_whole():
    model = toy()
    model.blocks[1].up = model.blocks[0].up
    shared = next(group for group in find_groups(model, token_ids()) if len(group.cut.reads) == 2)
    assert [part.tensor for part in shared.cut.reads] == ["blocks.0.down.weight", "blocks.1.down.weight"]
    proof = check_architecture(model, token_ids())
    assert not any(each.cut for each in proof.groups)
    assert next(each.proved for each in proof.groups if each.group == shared), "each reader counts, and is refitted"

    model = toy()
    model.blocks[1].up.weight = model.blocks[0].up.weight
    groups = find_groups(model, token_ids())
    assert {group.key for group in groups} == {"layers.0.heads", "layers.1.heads"}
    assert any("it does not run" in reason for reason in groups.left_whole.values())


# Samples


class Needy(Transformer):
    def forward(self, token_ids, weights, more=None):
        return super().forward(token_ids) * weights


def test_inputs_that_the_sample_lacks_are_named():
    with pytest.raises(ValueError, match="takes also weights, more, and cannot do without weights"):
        check_architecture(perturbed(Needy()), token_ids())
    with pytest.raises(ValueError, match="Transformer does not run on x .*cannot do without token_ids"):
        find_groups(toy(), {"x": torch.ones(1, 3)})
    with pytest.raises(TypeError, match=r"got Needy: .*check_architecture\(module, sample\)"):
        check_architecture(perturbed(Needy()))
    with pytest.raises(ValueError, match="no sample can be made up; its forward takes token_ids, weights, more"):
        find_groups(perturbed(Needy()))


def test_a_sample_of_one_token_is_refused():
    with pytest.raises(ValueError, match="the sample has 1 token in token_ids.*cannot be told apart"):
        find_groups(toy(), token_ids(1))
    with pytest.raises(ValueError, match="the sample has 1 token in input_ids"):
        check_architecture(llama(), {"input_ids": torch.tensor([[5]])})
    assert found(toy(), token_ids(2)) == ALL


@pytest.mark.parametrize("sample", [{}, {"token_ids": [[1, 2]]}, {"token_ids": torch.zeros(1, 0)}])
def test_a_sample_without_tensors_is_refused(sample):
    with pytest.raises(ValueError, match="the sample holds no tensor with values"):
        find_groups(toy(), sample)


def test_samples_are_made_up_until_the_model_runs():
    side = {"layers": 1, "attention_heads": 4, "ffn_dim": 48}
    sizes = {f"{name}_{field}": size for name in ("encoder", "decoder") for field, size in side.items()}
    config = tr.BartConfig(vocab_size=99, d_model=32, max_position_embeddings=64, **sizes)
    fewer = find_groups(perturbed(tr.BartModel(config))).sample
    assert fewer["input_ids"].shape != fewer["decoder_input_ids"].shape, "so that they can be told apart"
    classifier = perturbed(tr.BartForSequenceClassification(config))  # reads the decoder at the ends of the encoder's
    assert "decoder.0.heads" in {group.key for group in find_groups(classifier)}


def test_several_sequences_per_sample_are_refused_as_before():
    model = tr.RoFormerForMultipleChoice(tr.RoFormerConfig(**SHAPE))
    with pytest.raises(ValueError, match=r"reads several sequences per sample.*ForSequenceClassification"):
        check_architecture(model)


def test_values_that_are_no_numbers_are_named():
    model = toy()
    with torch.no_grad():
        model.blocks[0].up.weight[3, 3] = float("nan")
    with pytest.raises(ValueError, match=r"blocks\.0\.down\.weight reads NaN"):
        find_groups(model, token_ids())


# Control flow


class Routed(Transformer):
    """One of its two blocks runs, by what is read."""

    def __init__(self):
        super().__init__()
        self.router = nn.Linear(32, 2)

    def forward(self, token_ids):
        x = self.embed(token_ids)
        place = int(self.router(x.mean((0, 1))).argmax())
        return self.head(self.norm(self.blocks[place](x)).mean(1))


class Branching(Transformer):
    """Branches that the sample's values decide, and by which NaN goes the other way."""

    def forward(self, token_ids):
        x = self.embed(token_ids)
        for block in self.blocks:
            x = block(x) if x.sum() > -1e9 else 2 * x
        return self.head(self.norm(x).mean(1))


def test_what_does_not_run_for_the_sample_is_not_proved():
    model = perturbed(Routed())
    place = int(model.router(model.embed(token_ids()["token_ids"]).mean((0, 1))).argmax())
    proof = check_architecture(model, token_ids())
    idle = [each for each in proof.groups if each.group.layer != f"layers.{place}"]
    assert all("does not run for this sample" in each.score for each in idle)
    assert {each.group.key for each in proof.groups if not each.cut and not each.score} == {
        f"layers.{place}.heads",
        f"layers.{place}.neurons",
    }


def test_branches_by_values_are_found_or_named():
    groups = find_groups(perturbed(Branching()), token_ids())
    named = " ".join(groups.left_whole)
    for key in ALL:
        assert key in {group.key for group in groups} or key in named


# Memory


class Hungry(Transformer):
    """Runs out of memory in its third pass, as PyTorch does on a CPU."""

    passes = 0

    def forward(self, token_ids):
        self.passes += 1
        if self.passes > 2:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes.")
        return super().forward(token_ids)


def test_what_is_too_large_to_be_traced_says_what_it_needs():
    model = perturbed(Hungry())
    with pytest.raises(MemoryError, match=r"Hungry is too large to be traced.*0\.00 GB of weights.*token_ids \(1, 9\)"):
        discover(model, token_ids())


# Interruptions


class Interrupted(Transformer):
    """Ctrl-C in one of its passes."""

    passes = 0
    last = 10**9

    def forward(self, token_ids):
        type(self).passes += 1
        if type(self).passes == type(self).last:
            raise KeyboardInterrupt
        return super().forward(token_ids)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_a_model_is_the_same_after_ctrl_c_at_any_time(share):
    model = perturbed(Interrupted()).train()
    model.head.eval().weight.requires_grad_(False)
    Interrupted.passes, Interrupted.last = 0, 10**9
    before = seen(model)
    discover(model, token_ids())
    assert seen(model) == before
    passes = Interrupted.passes
    cache.forget()
    Interrupted.passes, Interrupted.last = 0, max(1, round(share * passes))
    with pytest.raises(KeyboardInterrupt):
        discover(model, token_ids())
    assert seen(model) == before


def test_a_model_that_writes_to_itself_is_the_same_after_ctrl_c():
    model, sample = perturbed(Pictures()), {"pixels": torch.randn(1, 3, 8, 8)}
    model.register_buffer("calls", torch.zeros(()))
    stop = [10**9]

    def count(module, args):
        module.calls += 1
        stop[0] -= 1
        if stop[0] == 0:
            raise KeyboardInterrupt

    model.register_forward_pre_hook(count)
    stop[0] = 20
    before = seen(model)
    with pytest.raises(KeyboardInterrupt):
        discover(model, sample)
    assert seen(model) == before


def test_a_model_of_transformers_is_the_same_after_ctrl_c():
    model = llama()
    stop = [30]

    def count(module, args, kwargs):
        stop[0] -= 1
        if stop[0] == 0:
            raise KeyboardInterrupt

    model.layers[1].register_forward_pre_hook(count, with_kwargs=True)
    before = state_of(model)
    with pytest.raises(KeyboardInterrupt):
        OptinPruner(model, config=OptinConfig(compensation="none")).check()
    assert state_of(model) == before


# Plain modules


def test_a_pruner_says_what_a_plain_module_can_have_instead():
    with pytest.raises(TypeError, match=r"must be a transformers model, got Transformer.*OptinPruner\.from_model"):
        OptinPruner(toy())


@pytest.mark.parametrize("norm_first", [False, True])
def test_the_model_stays_as_it_is_with_pytorchs_own_layers(norm_first):
    model = perturbed(TorchEncoder(norm_first))
    before, expected = seen(model), run_model(model, token_ids())["logits"]
    find_groups(model, token_ids())
    assert seen(model) == before and torch.equal(run_model(model, token_ids())["logits"], expected)


# Silence


def test_what_no_pass_reads_is_named():
    config = tr.BertConfig(is_decoder=True, add_cross_attention=True, **SHAPE)
    model = perturbed(tr.BertModel(config))
    left = find_groups(model).left_whole
    assert set(left) == {f"encoder.layer.{layer}.crossattention" for layer in (0, 1)}
    assert all("no operation reads it for this sample" in reason for reason in left.values())
    sample = {"input_ids": torch.arange(5, 15)[None], "encoder_hidden_states": torch.randn(1, 7, 32)}
    groups = find_groups(perturbed(tr.BertModel(config)), sample)
    assert not groups.left_whole and {f"layers.{layer}.crossattention_heads" for layer in (0, 1)} <= {
        group.key for group in groups
    }


class Normed(nn.Module):
    """A layer whose neurons are normalised all together, so that none can go alone."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(32, 48), nn.LayerNorm(48), nn.Linear(48, 32)

    def forward(self, x):
        return x + self.down(self.norm(self.up(x)))


class Mixed(nn.Module):
    """A list of layers, each with heads, neurons and what cannot be told."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(Normed(), Block()) for _ in range(2))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def test_weights_in_layers_of_which_nothing_can_be_told_are_named():
    groups = find_groups(perturbed(Mixed()), {"x": torch.randn(1, 5, 32)})
    assert {group.key for group in groups} == ALL
    silent = {f"layers.{layer}.0.{name}.weight" for layer in (0, 1) for name in ("up", "down")}
    named = {tensor.partition("[")[0] for name in groups.left_whole for tensor in name.split(", ")}
    assert silent <= named


def test_a_registered_encoder_that_is_set_up_as_a_decoder_is_traced():
    proof = check_architecture(perturbed(tr.BertLMHeadModel(tr.BertConfig(is_decoder=True, **SHAPE))))
    assert {each.group.key for each in proof.groups} == ALL and not any(each.cut for each in proof.groups)


def test_tokens_of_a_model_without_a_row_are_not_merged():
    shape = {name: size for name, size in SHAPE.items() if name.startswith(("hidden", "num", "inter"))}
    model = tr.ViTMSNForImageClassification(tr.ViTMSNConfig(image_size=16, patch_size=4, **shape))
    pruner = OptinPruner(perturbed(model), config=OptinConfig(compensation="none", merging=(4, 0)))
    with pytest.raises(ValueError, match=r"tokens of this 'vit_msn' model cannot be merged.*set merging='none'"):
        pruner.prune([{"pixel_values": torch.randn(3, 16, 16)} for _ in range(8)])
