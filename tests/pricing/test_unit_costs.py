"""What units cost, as PyTorch's flop counter sees it: against formulas, and against models that are cut."""

import copy
import itertools

import pytest
import torch
from accelerate import dispatch_model
from tiny import CASES, KINDS, tiny_batch, tiny_model
from transformers import BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertEncoder, BertLayer

from optimum_optin import Stack, find_groups, neurons
from optimum_optin.architectures import registry
from optimum_optin.architectures.group import HEADS
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.modalities import IMAGES, modality_of
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.media.vision import image_tokens
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.passes.hooks import observed
from optimum_optin.pricing.macs import cost_tables, count_macs, total_cost
from optimum_optin.storage.record import convert_model

each_architecture = pytest.mark.parametrize("model_type", CASES, ids=CASES)


def _tokens(model):
    return image_tokens(model, tiny_batch(model)) if modality_of(model) is IMAGES else 10


@torch.no_grad()
def _formula(model, groups, tokens):
    """Group key -> MACs of a unit: its rows and columns of linears for every token, and a head's share of attention."""
    with observed(model, [group.consumer for group in groups]) as seen:
        model(**probe_batch(model, tokens))
    macs = {}
    for group in groups:
        windows, attended, _ = seen[group.consumer].input.shape
        consumer = model.get_submodule(group.consumer)
        features = consumer.out_features + sum(
            each.parts * model.get_submodule(each.path).in_features for each in group.producers
        )
        macs[group.key] = windows * attended * group.width * features
        if group.role == HEADS:
            macs[group.key] += windows * 2 * attended**2 * group.width
            attention = model.get_submodule(group.cut.skips[0].path)
            if hasattr(attention, "continuous_position_bias_mlp"):  # SwinV2's bias of every distance within a window
                macs[group.key] += (2 * attention.window_size[0] - 1) ** 2 * 512
    return macs


ATTENTIONS = [(name, "sdpa") for name in CASES] + [(name, "eager") for name in KINDS]


@pytest.mark.parametrize(("model_type", "attention"), ATTENTIONS, ids=map(" ".join, ATTENTIONS))
def test_units_cost_what_the_formulas_say(model_type, attention):
    model = tiny_model(model_type)
    if model._supports_sdpa:
        model.set_attn_implementation(attention)
    groups, tokens = find_groups(model), _tokens(model)
    expected = _formula(model, groups, tokens)
    for key, table in cost_tables(model, groups, tokens).items():
        assert torch.equal(table, torch.arange(len(table)).double() * expected[key])


def test_bert_by_hand():
    model = tiny_model("bert")
    costs = cost_tables(model, find_groups(model), 10)
    assert float(costs["layers.0.heads"][1]) == 4 * 10 * 32 * 8 + 2 * 10**2 * 8
    assert float(costs["layers.0.neurons"][1]) == 2 * 10 * 32


@each_architecture
def test_every_unit_costs_the_same(model_type):
    """Costs of n units are n times those of one: what is counted of models with fewer and fewer of them says so."""
    model = tiny_model(model_type)
    tokens = _tokens(model)
    costs, batch = cost_tables(model, find_groups(model), tokens), probe_batch(model, tokens)
    whole = count_macs(model, batch)
    for role, part in itertools.product(("heads", "neurons"), (3 / 4, 1 / 2, 1 / 4)):
        cut = copy.deepcopy(model)
        groups = find_groups(model).of_role(role)
        kept = {group.key: int(part * group.units) for group in groups}
        rewrite(cut, groups, {group.key: torch.arange(group.units) < kept[group.key] for group in groups})
        gone = sum(float(costs[key][-1] - costs[key][count]) for key, count in kept.items())
        if all(kept.values()):  # the last head takes along what all share
            assert whole - count_macs(cut, batch) == gone


@pytest.mark.parametrize("model_type", KINDS)
def test_a_unit_costs_the_same_where_it_is_the_last(model_type):
    model = tiny_model(model_type)
    tokens = _tokens(model)
    one = copy.deepcopy(model)
    groups = find_groups(one)
    rewrite(one, groups, {group.key: torch.arange(group.units) < 1 for group in groups})
    dense, left = (cost_tables(each, find_groups(each), tokens) for each in (model, one))
    assert all(torch.equal(left[key], dense[key][:2]) for key in dense)


def test_a_model_that_merges_costs_what_it_would_without_and_with():
    model = tiny_model("vit")
    schedule = TokenSchedule(1, {"layers.0": 5, "layers.1": 4})
    merged = copy.deepcopy(model)
    convert_model(merged, {}, schedule)
    groups, batch = find_groups(model), tiny_batch(model, samples=1)
    for each in (None, schedule):
        assert total_cost(merged, find_groups(merged), 17, each) == total_cost(model, groups, 17, each)
    saved = total_cost(model, groups, 17) - total_cost(model, groups, 17, schedule)
    assert saved == count_macs(model, batch) - count_macs(merged, batch)


def test_nothing_of_the_model_runs_or_changes(monkeypatch):
    model = tiny_model("mpnet").train()
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(torch.nn.Linear, "forward", _only_without_weights)
    cost_tables(model, find_groups(model), 10)
    assert model.training and all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def _only_without_weights(self, input):
    assert self.weight.is_meta and input.is_meta
    return torch.nn.functional.linear(input, self.weight, self.bias)


class Halving(BertLayer):
    """Sees every other token."""

    def forward(self, hidden_states, attention_mask=None, *args, **kwargs):
        return super().forward(hidden_states[:, ::2], None, *args, **kwargs)


class Looping(BertEncoder):
    """Runs all layers twice."""

    def forward(self, hidden_states, **kwargs):
        return super().forward(super().forward(hidden_states, **kwargs).last_hidden_state, **kwargs)


def _halving(model):
    for layer in model.bert.encoder.layer[1:]:
        layer.__class__ = Halving


def _looping(model):
    model.bert.encoder.__class__ = Looping


@pytest.mark.parametrize(
    ("change", "tokens", "runs", "passes"),
    [
        (lambda model: None, (10, 10, 10), 1, 3 + 1 + 1),
        (_halving, (10, 5, 3), 1, 3 + 3 + 3),
        (_looping, (10, 10, 10), 2, 6 + 4 + 4),
    ],
    ids=["layers that do the same", "layers that see fewer tokens", "layers that run twice"],
)
def test_one_layer_of_a_kind_is_counted_and_passes_end_behind_it(change, tokens, runs, passes, monkeypatch):
    model, ran, forward = tiny_model("bert"), [], BertLayer.forward
    change(model)
    monkeypatch.setattr(BertLayer, "forward", lambda *args, **kwargs: ran.append(args[0]) or forward(*args, **kwargs))
    costs = cost_tables(model, find_groups(model), 10)
    for layer, seen in enumerate(tokens):
        assert float(costs[f"layers.{layer}.heads"][1]) == runs * (4 * seen * 32 * 8 + 2 * seen**2 * 8)
        assert float(costs[f"layers.{layer}.neurons"][1]) == runs * 2 * seen * 32
    assert len(ran) == passes


class Looking(BertForSequenceClassification):
    """A forward that looks at what tensors hold."""

    def forward(self, input_ids=None, attention_mask=None, **kwargs):
        return super().forward(input_ids[:, : int(attention_mask.sum(-1).max())], attention_mask, **kwargs)


def test_a_model_that_looks_at_its_inputs_is_counted_with_weights(monkeypatch):
    said = []
    monkeypatch.setattr("optimum_optin.pricing.skeletons.logger.debug", said.append)
    model, plain = tiny_model(model_class=Looking), tiny_model()
    costs = cost_tables(model, find_groups(model), 10)
    assert len(said) == 1 and "on a copy with weights" in said[0]
    expected = cost_tables(plain, find_groups(plain), 10)
    assert len(said) == 1, "others need no weights"
    assert all(torch.equal(costs[key], expected[key]) for key in expected)


@pytest.mark.parametrize("model_type", ["bert", "vit"])
def test_models_on_devices_and_with_kernels_of_others(model_type):
    model = tiny_model(model_type)
    tokens = _tokens(model)
    expected = cost_tables(model, find_groups(model), tokens)
    placed = dispatch_model(copy.deepcopy(model), {"": "cpu"}, main_device="cpu", force_hooks=True)
    flash = copy.deepcopy(model)
    flash.config._attn_implementation = "flash_attention_2"
    for each in (placed, flash):
        costs = cost_tables(each, find_groups(each), tokens)
        assert all(torch.equal(costs[key], expected[key]) for key in expected)


def test_units_that_cost_nothing_are_refused_by_name():
    row = (neurons(["encoder.layer.1.intermediate.dense"], "encoder.layer.1.output.dense"),)
    registry.register_architecture("elsewhere", Stack("embeddings_list", row))
    try:
        model = tiny_model("bert", base=True)
        model.embeddings_list = torch.nn.ModuleList([torch.nn.ModuleDict({"encoder": model.encoder})])
        model.config.model_type = "elsewhere"
        with pytest.raises(
            ValueError, match=r"layers\.0\.neurons costs nothing: with one unit more, layers\.0 does 0 MACs more"
        ):
            cost_tables(model, find_groups(model), 10)
    finally:
        registry._ARCHITECTURES.pop("elsewhere")


def test_counting_leaves_nothing_that_the_next_model_reads():
    """Transformers keeps BEiT's places in a window for the whole process: here, of a size that no other test has."""
    model = tiny_model("beit", image_size=28)
    cost_tables(model, find_groups(model), 50)
    with torch.no_grad():
        logits = model(pixel_values=torch.ones(1, 3, 28, 28)).logits
    assert type(logits) is torch.Tensor and logits.isfinite().all()
