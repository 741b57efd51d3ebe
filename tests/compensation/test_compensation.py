"""Compensation: what can be taken over exactly is, for every architecture; what cannot gets better, never worse."""

import copy

import pytest
import torch
from tiny import CASES, KINDS, output_of, random_masks, tiny_batch, tiny_model, tiny_samples
from transformers import AutoModelForSequenceClassification
from walks import walked_to

from optimum_optin import OptinConfig, OptinPruner, Scores, find_groups
from optimum_optin.architectures.group import attribute
from optimum_optin.compensation.refit import compensate
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.media.vision import image_tokens
from optimum_optin.passes.calibration import calibrate
from optimum_optin.passes.hooks import observed, recorded
from optimum_optin.passes.trajectory import hidden_states
from optimum_optin.running.batch import token_mask


def _with_twins(model_type):
    """A model whose second half of heads and neurons does the same as the first."""
    model = tiny_model(model_type)
    with torch.no_grad():
        for group in find_groups(model):
            half = group.units * group.width // 2
            for producer in group.producers:
                module = model.get_submodule(producer.path)
                for parameter in filter(lambda each: each is not None, (module.weight, module.bias)):
                    parts = parameter.view(producer.parts, 2, half, -1)
                    parts[:, 1] = parts[:, 0]
            linears = {producer.path for producer in group.producers}
            for table in (each for each in group.cut.writes if each.tensor.rpartition(".")[0] not in linears):
                first, second = attribute(model, table.tensor).chunk(2, table.dim)
                second.copy_(first)
        for name, table in model.named_parameters():
            if "relative_attention_bias" in name or "bias.relative_position_bias_table" in name:  # one for all layers
                table[:, table.shape[1] // 2 :] = table[:, : table.shape[1] // 2].clone()
    return model


def _pruned(model, masks):
    pruned = copy.deepcopy(model)
    rewrite(pruned, find_groups(pruned), masks)
    return pruned


def _compensate(dense, pruned, batches):
    compensate(dense, pruned, find_groups(dense), calibrate(dense, batches))


@torch.no_grad()
def _distance(one, other, batches):
    return sum(float((output_of(one, batch) - output_of(other, batch)).square().sum()) for batch in batches)


@pytest.mark.parametrize("model_type", CASES, ids=CASES)
def test_twins_take_over(model_type):
    model = _with_twins(model_type)
    masks = {group.key: torch.arange(group.units) < group.units // 2 for group in find_groups(model)}
    pruned = _pruned(model, masks)
    batches = calibration_batches(tiny_samples(200, model=model), model)
    before = _distance(pruned, model, batches)
    _compensate(model, pruned, batches)
    assert _distance(pruned, model, batches) < 1e-3 * before


@pytest.mark.parametrize(
    ("role", "lost"),
    [("heads", False), ("neurons", False), ("neurons", True)],
    ids=["heads", "neurons", "neurons after a lost attention"],
)
def test_errors_are_what_the_sums_before_the_norms_lack(role, lost):
    """Without a refit, what a sublayer lacks shows at the input of the LayerNorm behind it."""
    model = tiny_model()
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in find_groups(model)}
    masks["layers.1.heads"][:] = not lost
    dense = _pruned(model, masks)
    masks = {group.key: torch.arange(group.units) < group.units // 2 for group in find_groups(dense)}
    pruned = _pruned(dense, masks)
    batch = tiny_batch(model)
    norm = {"heads": "attention.output.LayerNorm", "neurons": "output.LayerNorm"}[role]
    sums = []
    for each in (dense, pruned):
        with observed(each, [f"bert.encoder.layer.1.{norm}"]) as seen:
            output_of(each, batch)
        sums.append(next(iter(seen.values())).input[batch["attention_mask"].bool()])

    with walked_to(dense, pruned, batch, f"layers.1.{role}") as (stop, walk):
        _, errors, _ = walk.output_errors(stop)
    torch.testing.assert_close(errors, sums[0] - sums[1], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("role", ["heads", "neurons"])
@pytest.mark.parametrize(
    ("model_type", "layers", "norm"),
    [
        ("modernbert", "model.layers", "mlp_norm"),
        ("beit", "beit.layers", "layernorm_after"),  # with layer scale, as the next
        ("dinov2", "dinov2.encoder.layer", "norm2"),
    ],
    ids=["modernbert", "beit", "dinov2"],
)
def test_errors_are_what_a_pre_norm_stream_lacks(model_type, layers, norm, role):
    """Before the second norm is the stream after attention, after the layer that after both sublayers."""
    dense = tiny_model(model_type)
    groups = find_groups(dense)
    pruned = _pruned(dense, {group.key: torch.arange(group.units) < group.units // 2 for group in groups})
    batch = tiny_batch(dense)
    streams = []
    for each in (dense, pruned):
        with recorded(each, {"layer": f"{layers}.1"}) as after, observed(each, [f"{layers}.1.{norm}"]) as seen:
            output_of(each, batch)
        stream = seen[f"{layers}.1.{norm}"].input if role == "heads" else hidden_states(after["layer"])
        streams.append(stream[token_mask(batch, image_tokens(dense, batch))])

    with walked_to(dense, pruned, batch, f"layers.1.{role}") as (stop, walk):
        _, errors, _ = walk.output_errors(stop)
    torch.testing.assert_close(errors, streams[0] - streams[1], atol=1e-5, rtol=1e-5)


REFITTED = [(name, False) for name in CASES] + [(name, True) for name in KINDS]


@pytest.mark.parametrize(
    ("model_type", "empty"), REFITTED, ids=[f"{name}{', whole' * gone}" for name, gone in REFITTED]
)
def test_fresh_data_come_closer_to_the_dense_outputs(model_type, empty):
    before = after = 0
    for seed in range(2):  # by chance, a removal may hurt the outputs of one model little
        model = tiny_model(model_type, seed=seed)
        masks = random_masks(find_groups(model), share=0.6, seed=seed)
        if empty:
            for key, mask in masks.items():
                if key.endswith((".1.heads", ".2.neurons")):
                    mask[:] = False
        pruned = _pruned(model, masks)
        fresh = calibration_batches(tiny_samples(64, seed=5, model=model), model)
        before += _distance(pruned, model, fresh)
        compensate(
            model,
            pruned,
            find_groups(model),
            calibrate(model, calibration_batches(tiny_samples(200, model=model), model)),
        )
        after += _distance(pruned, model, fresh)
    assert after < (0.9 if empty else 0.6) * before


def test_the_dense_model_and_the_rest_of_the_pruned_one_are_untouched():
    model = tiny_model()
    dense = copy.deepcopy(model.state_dict())
    pruned = _pruned(model, random_masks(find_groups(model)))
    before = copy.deepcopy(pruned.state_dict())
    _compensate(model, pruned, calibration_batches(tiny_samples(), model))
    assert all(torch.equal(value, dense[name]) for name, value in model.state_dict().items())
    changed = {name for name, value in pruned.state_dict().items() if not torch.equal(value, before[name])}
    linears = {path for group in find_groups(model) for path in (group.consumer, *(p.path for p in group.producers))}
    assert changed
    assert {name.rpartition(".")[0] for name in changed} <= linears
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pruned.modules())


def test_few_tokens_warn_and_stay_finite(caplog):
    pruned = OptinPruner(tiny_model()).prune([{"input_ids": [5, 6, 7]}], OptinConfig(flops=0.9, probes=4))
    assert "calibration data have 3 tokens, fewer than the 48 inputs of a linear" in caplog.text
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())


@pytest.mark.parametrize(("model_type", "scorer"), [("bert", "gauss_newton"), ("distilbert", "surgeon")])
def test_a_chunked_feed_forward_changes_nothing(model_type, scorer):
    pruned = []
    for size in (0, 1):
        pruner = OptinPruner(tiny_model(model_type, chunk_size_feed_forward=size))
        pruned.append(pruner.prune(tiny_samples(), OptinConfig(flops=0.5, probes=8, scorer=scorer)))
        sizes = {getattr(module, "chunk_size_feed_forward", size) for module in pruner.model.modules()}
        assert sizes == {size}
    batch = tiny_batch(pruned[0])
    torch.testing.assert_close(output_of(pruned[0], batch), output_of(pruned[1], batch), atol=1e-4, rtol=1e-4)


def test_a_single_batch_is_split_by_tokens_to_choose_by():
    model = tiny_model()
    worse = 0
    for seed in range(4):
        pruned = _pruned(model, random_masks(find_groups(model), seed=seed))
        fresh = calibration_batches(tiny_samples(64, seed=5), model)
        before = _distance(pruned, model, fresh)
        compensate(
            model, pruned, find_groups(model), calibrate(model, calibration_batches(tiny_samples(8, seed=seed), model))
        )
        worse += _distance(pruned, model, fresh) > 1.1 * before
    assert worse == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_keep_their_dtype(dtype):
    pruner = OptinPruner(tiny_model().to(dtype))
    pruned = pruner.prune(tiny_samples(), OptinConfig(flops=0.5, probes=8))
    assert {parameter.dtype for parameter in pruned.parameters()} == {dtype}
    assert all(parameter.isfinite().all() for parameter in pruned.parameters())


def test_prune_compensates_by_default_and_saves_the_result(tmp_path):
    model = tiny_model()
    pruner = OptinPruner(model)
    samples = tiny_samples(200)
    scores = pruner.score(samples, OptinConfig(probes=16))
    batches = calibration_batches(samples, model)
    plain = pruner.prune(scores=scores, flops=0.5, config=OptinConfig(probes=16, compensation="none"))
    refitted = pruner.prune(scores=scores, flops=0.5, save_dir=tmp_path)
    assert _distance(refitted, model, batches) < 0.5 * _distance(plain, model, batches)
    assert pruner.report.seconds["compensation"] > 0
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    batch = tiny_batch(model)
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch).logits, refitted(**batch).logits, atol=0, rtol=0)


def test_scores_from_disk_need_data_to_compensate_with(tmp_path):
    model, samples = tiny_model(), tiny_samples(40)
    one = OptinPruner(model)
    scores = one.score(samples, OptinConfig(probes=4))
    scores.save_pretrained(tmp_path)
    other, loaded = OptinPruner(model), Scores.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"needs calibration data, which saved scores do not hold"):
        other.prune(scores=loaded)
    expected = one.prune(scores=scores).state_dict()
    got = other.prune(samples, scores=loaded).state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in got.items())
    other.prune(scores=loaded, config=OptinConfig(probes=4, compensation="none"))


def test_tied_consumers_come_apart():
    """Two layers share a consumer's weight: each layer is cut and refitted on its own."""
    model, apart = tiny_model(), tiny_model()
    for each in (model, apart):
        layers = each.bert.encoder.layer
        layers[1].output.dense.weight = layers[0].output.dense.weight
    apart.bert.encoder.layer[1].output.dense.weight = torch.nn.Parameter(
        model.bert.encoder.layer[0].output.dense.weight
    )
    config = OptinConfig(flops=0.5, probes=8)
    tied, untied = (OptinPruner(each).prune(tiny_samples(), config) for each in (model, apart))
    batch = tiny_batch(model)
    torch.testing.assert_close(output_of(tied, batch), output_of(untied, batch), atol=0, rtol=0)


@torch.no_grad()
def test_producers_undo_what_their_input_tells_of_an_error():
    """The layer below ends in another scale and shift: an error that is a linear function of the input."""
    dense, pruned = tiny_model(), tiny_model()
    norm = pruned.bert.encoder.layer[0].output.LayerNorm
    norm.weight.mul_(torch.linspace(0.5, 1.5, len(norm.weight)))
    norm.bias.add_(torch.linspace(-1, 1, len(norm.bias)))
    _compensate(dense, pruned, calibration_batches(tiny_samples(200), dense))
    batch = tiny_batch(dense, seed=9)
    paths = [f"bert.encoder.layer.1.attention.self.{name}" for name in ("query", "key", "value")]
    written = []
    for model in (dense, pruned):
        with observed(model, paths) as seen:
            output_of(model, batch)
        written.append(torch.cat([seen[path].output for path in paths]))
    torch.testing.assert_close(written[1], written[0], atol=0.02, rtol=0.02)
