"""The refit against brute force, on models that no row describes, and what it leaves behind if it is interrupted."""

import copy
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import transformers as tr
from test_untouched import state_of
from tiny import SHAPE, random_masks, tiny_batch, tiny_model, tiny_samples
from torch import nn

from optimum_optin import OptinConfig, find_groups
from optimum_optin.architectures.group import Blocks, Consumer, Cut, Group, Groups, Producer
from optimum_optin.compensation import corrections
from optimum_optin.compensation.refit import ALONE, UNREACHED, refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.passes.hooks import observed
from optimum_optin.passes.starts import Start, shared_out
from optimum_optin.running import processes
from optimum_optin.running.batch import token_mask
from optimum_optin.running.forward import call_model
from optimum_optin.running.processes import state

STRENGTH = 1e-2
DECODER = {name: size for name, size in SHAPE.items() if name != "num_labels"}


def made(model_class, config):
    """A perturbed model."""
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def group_of(model, layer, role, producers, consumer, *, width=1, counters=None):
    """A group that nobody registered."""
    units = model.get_submodule(consumer).in_features // width
    named = dict(model.named_parameters())
    written = [f"{path}.{name}" for path in producers for name in ("weight", "bias") if f"{path}.{name}" in named]
    cut = Cut(
        (Consumer(consumer, width),),
        tuple(map(Producer, producers)),
        tuple(Blocks(name, 0, (width,)) for name in written),
        (Blocks(f"{consumer}.weight", 1, (width,)),),
        counters or {},
    )
    return Group(layer, role, units, width, cut)


def groups_of(layers, *members):
    return Groups(tuple(members), layers, dict.fromkeys((name.partition(".")[0] for name in layers), "input_ids"))


def start_of(batch, groups, masks):
    """A start with the same weight for every real token; `masks` has one for each stack."""
    weights = {group.consumer: masks[group.layer.partition(".")[0]].float() for group in groups}
    return Start(batch, masks, weights)


def text_batches(count, seed=0):
    """Batches of token ids, padded at the end."""
    return [tiny_batch(tiny_model(), seed=seed * 1000 + number, samples=6) for number in range(count)]


def pruned_of(model, groups, share=0.5):
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, random_masks(groups, share=share))
    return pruned


def ridge(inputs, errors, intercept):
    """The weighted least squares that a refit solves, by `torch.linalg.lstsq` on all rows at once."""
    x, errors = inputs.double(), errors.double()
    mean = x.mean(0) if intercept else torch.zeros(x.shape[1], dtype=torch.float64)
    error_mean = errors.mean(0) if intercept else torch.zeros(errors.shape[1], dtype=torch.float64)
    centred = x - mean
    pull = STRENGTH * centred.square().sum(0).mean() + 1e-5 * torch.minimum(
        x.square().sum(0).mean(), 10 * (x - x.mean(0)).square().sum(0).mean()
    )
    rows = torch.cat([centred, pull.sqrt() * torch.eye(x.shape[1], dtype=torch.float64)])
    targets = torch.cat([errors - error_mean, torch.zeros(x.shape[1], errors.shape[1], dtype=torch.float64)])
    weight = torch.linalg.lstsq(rows, targets).solution.T
    return weight, error_mean - weight @ mean


@torch.no_grad()
def gathered(model, path, batches, masks):
    """What a module reads of the real tokens of all batches, first argument."""
    found = []
    for batch, mask in zip(batches, masks, strict=True):
        with observed(model, [path]) as seen:
            call_model(model, batch)
        found.append(seen[path].input[mask])
    return torch.cat(found)


def _bert():
    model = tiny_model(base=True)
    groups = find_groups(model)
    return model, groups, "encoder.layer.1.output.LayerNorm", 1.0


def _dinov2():
    model = tiny_model("dinov2", base=True)
    return model, find_groups(model), "encoder.layer.2.norm1", model.encoder.layer[1].layer_scale2.lambda1


def _granite():
    model = made(tr.GraniteModel, tr.GraniteConfig(residual_multiplier=0.22, num_key_value_heads=4, **DECODER))
    members = [
        group_of(
            model,
            f"layers.{index}",
            "neurons",
            [f"layers.{index}.mlp.gate_proj", f"layers.{index}.mlp.up_proj"],
            f"layers.{index}.mlp.down_proj",
        )
        for index in range(3)
    ]
    layers = {f"layers.{index}": f"layers.{index}" for index in range(3)}
    return model, groups_of(layers, *members), "layers.2.input_layernorm", 0.22


@pytest.mark.parametrize("make", [_bert, _dinov2, _granite], ids=["BERT", "DINOv2, layer scale", "Granite, a number"])
def test_a_consumer_is_refitted_to_the_stream_as_brute_force_does(make):
    dense, groups, reader, scale = make()
    groups = replace(groups, members=tuple(each for each in groups if each.key == "layers.1.neurons"))
    batches = text_batches(6)
    if dense.main_input_name == "pixel_values":
        batches = [tiny_batch(dense, seed=seed) for seed in range(40)]
        masks = [torch.ones(3, 17, dtype=torch.bool) for _ in batches]
    else:
        masks = [token_mask(batch) for batch in batches]
    pruned = pruned_of(dense, groups)
    before, consumer = copy.deepcopy(pruned), groups[0].consumer
    assert refit(dense, [pruned], groups, _starts(groups, batches, masks), STRENGTH) == {}

    inputs = gathered(before, consumer, batches, masks)
    errors = gathered(dense, reader, batches, masks) - gathered(before, reader, batches, masks)
    old, new = before.get_submodule(consumer), pruned.get_submodule(consumer)
    weight, bias = ridge(inputs, errors, old.bias is not None)
    scale = torch.as_tensor(scale).expand(len(weight)).detach()
    change = (new.weight - old.weight).double()
    assert change.norm() > 1e-3
    torch.testing.assert_close(change, weight / scale[:, None], atol=1e-5, rtol=1e-3)
    if old.bias is not None:
        torch.testing.assert_close((new.bias - old.bias).double(), bias / scale, atol=1e-4, rtol=1e-3)


def _starts(groups, batches, masks):
    return [start_of(batch, groups, {"layers": mask}) for batch, mask in zip(batches, masks, strict=True)]


def test_producers_are_corrected_for_their_inputs_as_brute_force_does():
    dense = tiny_model(base=True)
    pruned = copy.deepcopy(dense)
    with torch.no_grad():
        pruned.encoder.layer[0].output.LayerNorm.weight.mul_(torch.linspace(0.5, 1.5, 32))
        pruned.encoder.layer[0].output.LayerNorm.bias.add_(0.3 * torch.randn(32))
    groups = find_groups(dense)
    groups = replace(groups, members=tuple(each for each in groups if each.key == "layers.1.heads"))
    batches = text_batches(6)
    masks = [token_mask(batch) for batch in batches]
    before, query = copy.deepcopy(pruned), groups[0].producers[0].path
    refit(dense, [pruned], groups, _starts(groups, batches, masks), STRENGTH)

    inputs = gathered(before, query, batches, masks)
    change, shift = ridge(inputs, gathered(dense, query, batches, masks) - inputs, True)
    for producer in groups[0].producers:
        old, new = (each.get_submodule(producer.path) for each in (before, pruned))
        expected = old.weight.double() @ (torch.eye(32, dtype=torch.float64) + change)
        torch.testing.assert_close(new.weight.double(), expected, atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(
            new.bias.double(), old.bias.double() + old.weight.double() @ shift, atol=1e-4, rtol=1e-3
        )


def _distance(one, other, batches):
    with torch.no_grad():
        states = [[call_model(each, batch).last_hidden_state for batch in batches] for each in (one, other)]
    return sum(float((mine - yours).square().sum()) for mine, yours in zip(*states, strict=True))


def test_layers_that_do_not_chain():
    """DeBERTa-v2's convolution stands between its first two layers."""
    config = tr.DebertaV2Config(conv_kernel_size=3, conv_act="gelu", **SHAPE)
    dense = made(tr.DebertaV2Model, config)
    members = []
    for index in range(3):
        layer = f"encoder.layer.{index}"
        members.append(
            group_of(
                dense,
                f"layers.{index}",
                "heads",
                [f"{layer}.attention.self.{name}_proj" for name in ("query", "key", "value")],
                f"{layer}.attention.output.dense",
                width=8,
                counters={f"{layer}.attention.self.num_attention_heads": 1},
            )
        )
        members.append(
            group_of(dense, f"layers.{index}", "neurons", [f"{layer}.intermediate.dense"], f"{layer}.output.dense")
        )
    groups = groups_of({f"layers.{index}": f"encoder.layer.{index}" for index in range(3)}, *members)
    batches, fresh = text_batches(30), text_batches(10, seed=1)
    starts = _starts(groups, batches, [token_mask(batch) for batch in batches])
    pruned = pruned_of(dense, groups)
    before = _distance(dense, pruned, fresh)
    assert refit(dense, [pruned], groups, starts) == {}
    assert _distance(dense, pruned, fresh) < 0.6 * before


def test_cross_attention():
    """BART's decoder: queries are corrected for the decoder's stream, keys and values for what the encoder returns."""
    shape = {"vocab_size": 99, "d_model": 32, "max_position_embeddings": 64, "pad_token_id": 1}
    parts = {
        f"{side}_{name}": size
        for side in ("encoder", "decoder")
        for name, size in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))
    }
    dense = made(tr.BartModel, tr.BartConfig(**shape, **parts))
    members, layers = [], {}
    for stack in ("encoder", "decoder"):
        for index in range(2):
            path, name = f"{stack}.layers.{index}", f"{stack}.{index}"
            layers[name] = path
            for role, attention in (("heads", "self_attn"), ("cross", "encoder_attn")):
                if stack == "decoder" or role == "heads":
                    linears = [f"{path}.{attention}.{each}_proj" for each in ("q", "k", "v")]
                    counters = {f"{path}.{attention}.num_heads": 1}
                    group = group_of(
                        dense, name, "heads", linears, f"{path}.{attention}.out_proj", width=8, counters=counters
                    )
                    members.append(replace(group, role=role))
            members.append(group_of(dense, name, "neurons", [f"{path}.fc1"], f"{path}.fc2"))
    groups = groups_of(layers, *members)

    def batches_of(count, seed):
        generator = torch.Generator().manual_seed(seed)
        batches = []
        for _ in range(count):
            ids, others = (torch.randint(5, 95, (6, length), generator=generator) for length in (12, 9))
            ids[3:, 8:] = 1
            batches.append({"input_ids": ids, "attention_mask": (ids != 1).long(), "decoder_input_ids": others})
        return batches

    starts = []
    for batch in batches_of(40, 0):
        masks = {
            "encoder": batch["attention_mask"].bool(),
            "decoder": torch.ones_like(batch["decoder_input_ids"], dtype=torch.bool),
        }
        starts.append(start_of(batch, groups, masks))
    pruned, fresh = pruned_of(dense, groups, share=0.6), batches_of(10, 1)
    keys = pruned.decoder.layers[1].encoder_attn.k_proj.weight.clone()
    before = _distance(dense, pruned, fresh)
    assert refit(dense, [pruned], groups, starts) == {}
    assert _distance(dense, pruned, fresh) < 0.6 * before
    assert not torch.equal(pruned.decoder.layers[1].encoder_attn.k_proj.weight, keys)


def test_groups_that_data_do_not_reach_are_left_and_those_without_a_join_are_named():
    class Short(tr.BertModel):
        def forward(self, input_ids=None, attention_mask=None):
            layers = self.encoder.layer
            self.encoder.layer = layers[:2]
            try:
                return super().forward(input_ids, attention_mask=attention_mask)
            finally:
                self.encoder.layer = layers

    for dense, expected in (
        (tiny_model(model_class=Short), {f"layers.2.{role}": UNREACHED for role in ("heads", "neurons")}),
        (tiny_model("swin", base=True), {f"layers.{index}.heads": ALONE for index in range(3)}),
    ):
        groups = find_groups(dense)
        pruned = pruned_of(dense, groups)
        weights = copy.deepcopy(pruned.state_dict())
        batches = calibration_batches(tiny_samples(40, model=dense), dense)
        if dense.main_input_name == "input_ids":
            masks = [token_mask(batch) for batch in batches]
            starts = _starts(groups, batches, masks)
        else:
            starts = dense_passes(dense, groups, calibrate(dense, batches), OptinConfig())
        assert refit(dense, [pruned], groups, starts) == expected
        for group in groups:
            same = torch.equal(pruned.get_submodule(group.consumer).weight, weights[f"{group.consumer}.weight"])
            assert same == (expected.get(group.key) == UNREACHED)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
@pytest.mark.parametrize("place", ["a regression", "a pass"])
def test_an_interrupted_refit_leaves_no_hooks_and_no_passes(error, place, monkeypatch):
    dense = tiny_model(base=True)
    groups = find_groups(dense)
    pruned = pruned_of(dense, groups)
    batches = text_batches(5)
    starts = _starts(groups, batches, [token_mask(batch) for batch in batches])
    before = state_of(dense)
    modules = [module for model in (dense, pruned) for module in model.modules()]
    forwards = [dict(vars(module)).get("forward") for module in modules]
    target, name = (corrections, "solve_ridge") if place == "a regression" else (nn.functional, "gelu")
    normal, calls = getattr(target, name), []

    def failing(*arguments, **options):
        calls.append(1)
        if len(calls) == 9:
            raise error("stopped")
        return normal(*arguments, **options)

    if place == "a pass":
        for layer in pruned.encoder.layer:
            layer.intermediate.intermediate_act_fn = failing_module(failing)
    else:
        monkeypatch.setattr(target, name, failing)
    with pytest.raises(error, match="stopped"):
        refit(dense, [pruned], groups, starts)
    assert len(calls) == 9
    assert state_of(dense) == before
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    assert [dict(vars(module)).get("forward") for module in modules] == forwards
    monkeypatch.undo()
    calls.extend([1] * 10)
    refit(dense, [pruned], groups, starts)


def failing_module(forward):
    module = nn.Module()
    module.forward = forward
    return module


def test_batches_of_other_processes_have_no_walk():
    dense = tiny_model(base=True)
    groups = find_groups(dense)
    batches = text_batches(6)
    starts = _starts(groups, batches, [token_mask(batch) for batch in batches])
    one, other = pruned_of(dense, groups), pruned_of(dense, groups)
    refit(dense, [one], groups, [None, *starts[:5]], STRENGTH)
    refit(dense, [other], groups, starts[:5], STRENGTH)
    assert state().num_processes == 1
    for mine, yours in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("model_type", ["bert", "swin with padded windows"])
def test_processes_share_few_starts_out_by_their_samples(model_type, monkeypatch):
    dense = tiny_model(model_type)
    groups = find_groups(dense)
    batches = calibration_batches(tiny_samples(13, model=dense), dense, num_samples=13, batch_size=5)
    starts = dense_passes(dense, groups, calibrate(dense, batches), OptinConfig())
    starts = [*starts[1:], starts[0]]
    assert [len(start.batch[dense.main_input_name]) for start in starts] == [5, 5, 3]
    given = []
    for place in range(2):
        monkeypatch.setattr(
            processes, "state", lambda place=place: SimpleNamespace(num_processes=2, process_index=place)
        )
        given.append(shared_out(starts))
        odd = shared_out([*starts[:2], replace(starts[2], weights={"other": torch.ones(4)})])
        assert (odd[2] is None) == (place == 1)  # what cannot be told apart by samples stays whole
        assert shared_out(starts[:1], by_samples=False) == [None if place else starts[0]]
    monkeypatch.undo()
    (first, second, part), (other_first, other_second, other_part) = given
    assert first is starts[0] and second is None and other_first is None and other_second is starts[1]
    assert [len(each.batch[dense.main_input_name]) for each in (part, other_part)] == [1, 2]
    one, other = pruned_of(dense, groups), pruned_of(dense, groups)
    refit(dense, [one], groups, starts, STRENGTH)
    refit(dense, [other], groups, [first, other_second, part, other_part], STRENGTH)
    for mine, yours in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, yours, atol=1e-4, rtol=1e-3)


def test_sums_begin_about_the_first_rows_to_fit_that_there_are(monkeypatch):
    """Of two regressions at a stop, in the same order on every process, whichever has rows first."""
    begun, begin = [], corrections.begin_together
    monkeypatch.setattr(corrections, "begin_together", lambda pair, x: begun.append(x) or begin(pair, x))
    x = 3e3 + torch.randn(6, 20, 3, generator=torch.Generator().manual_seed(0))
    given = {"late": [x[0], None, x[2][:0], x[3], None, x[5]], "early": list(x)}
    walks = [SimpleNamespace(reach=lambda stop: True, index=index) for index in range(6)]

    def rows_of(walk, stop, *, name):
        rows = given[name][walk.index]
        return None if rows is None else (rows, rows[:, :2], torch.ones(len(rows)))

    wanted = {name: corrections._Wanted(nn.Linear(3, 2), 2, partial(rows_of, name=name)) for name in given}
    for names, first in ((["late"], [x[3]]), (["early"], [x[1]]), (["late", "early"], [None, x[1]])):
        begun.clear()
        found = corrections._sums(walks, None, [wanted[name] for name in names], None)
        for name, seen, expected, (fit, held_out) in zip(names, begun, first, found, strict=True):
            assert seen is None if expected is None else torch.equal(seen, expected)
            assert torch.equal(fit.inputs.shift, held_out.inputs.shift)
            assert torch.equal(fit.inputs.shift, torch.zeros(3) if seen is None else seen.double().mean(0).float())
            rows = torch.cat([rows for index, rows in enumerate(given[name]) if index % 5 and rows is not None])
            torch.testing.assert_close(fit.inputs.mean(), rows.double().mean(0), rtol=1e-7, atol=0)
            assert held_out.weight == 40 and fit.weight == len(rows)
