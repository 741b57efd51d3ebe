"""Every registered architecture, through every stage that depends on how it is built."""

import copy
import itertools

import pytest
import torch
from safetensors.torch import load_file
from scipy.stats import spearmanr
from tiny import CASES, KINDS, TINY, load, output_of, random_masks, tiny_batch, tiny_model, tiny_samples
from transformers import AutoModel

from optimum_optin import OptinConfig, OptinPruner, Stack, find_groups, known_architectures, masked, neurons
from optimum_optin.architectures.registry import register_architecture, row_of
from optimum_optin.discovery.find import find_layers, stack_inputs
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.modalities import IMAGES, modality_of
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.media.vision import image_tokens
from optimum_optin.passes.hooks import recorded, replayed
from optimum_optin.pricing.macs import cost_tables, count_macs, dense_cost
from optimum_optin.pricing.tensors import count_parameters
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

each_architecture = pytest.mark.parametrize("model_type", CASES, ids=CASES)


def _masks_with_empty_sublayers(groups):
    masks = random_masks(groups)
    for key, mask in masks.items():
        if key.endswith((".1.heads", ".2.neurons")):
            mask[:] = False
    return masks


def _cut(model, masks):
    pruned = copy.deepcopy(model)
    groups = find_groups(pruned)
    rewrite(pruned, groups, masks)
    record_structure(pruned, structure_of(groups, masks), groups)
    return pruned


def test_every_architecture_has_a_tiny_model():
    assert set(known_architectures()) == set(TINY)


@each_architecture
def test_groups_cover_heads_and_neurons_of_all_layers(model_type):
    model = tiny_model(model_type)
    groups = find_groups(model)
    stacks = list(stack_inputs(model))
    assert stacks == {"clip": ["vision", "text"], "siglip": ["vision", "text"]}.get(
        model_type, ["vision"] if "classifier" in model_type else ["layers"]
    )
    assert [group.key for group in groups] == [
        f"{stack}.{layer}.{role}" for stack in stacks for layer in range(3) for role in ("heads", "neurons")
    ]
    sizes = {(group.role, group.units, group.width) for group in groups}
    if model_type.startswith("swin"):  # whose first stage is half as wide
        assert sizes == {("heads", 2, 8), ("neurons", 24, 1), ("heads", 4, 8), ("neurons", 48, 1)}
    else:
        neuron_count = 64 if model_type in ("dinov2", "dinov2_with_registers") else 48  # a multiple of the width
        assert sizes == {("heads", 4, 8), ("neurons", neuron_count, 1)}


@each_architecture
@pytest.mark.parametrize("make_masks", [random_masks, _masks_with_empty_sublayers], ids=["some", "whole sublayers"])
def test_mask_equals_slice(model_type, make_masks):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    groups = find_groups(model)
    masks = make_masks(groups)
    dense = output_of(model, batch)
    with masked(model, groups, masks):
        expected = output_of(model, batch)
    assert (expected - dense).abs().max() > 1e-3, "the masks must matter"
    torch.testing.assert_close(output_of(_cut(model, masks), batch), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output_of(model, batch), dense, atol=0, rtol=0)  # the dense model is untouched


@each_architecture
def test_save_load_save(model_type, tmp_path):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    pruned = _cut(model, _masks_with_empty_sublayers(find_groups(model)))
    expected = output_of(pruned, batch)

    pruned.save_pretrained(tmp_path / "first")
    assert not [
        name for name, tensor in load_file(tmp_path / "first" / "model.safetensors").items() if 0 in tensor.shape
    ]
    loaded = load(model, tmp_path / "first")
    assert not [name for name, tensor in loaded.state_dict().items() if 0 in tensor.shape]
    torch.testing.assert_close(output_of(loaded, batch), expected, atol=0, rtol=0)
    assert count_parameters(loaded) == count_parameters(pruned) < count_parameters(model)

    loaded.save_pretrained(tmp_path / "second")
    again = load(model, tmp_path / "second")
    torch.testing.assert_close(output_of(again, batch), expected, atol=0, rtol=0)

    if type(model) is TINY[model.config.model_type][1] or model.base_model is model:
        return
    base = AutoModel.from_pretrained(tmp_path / "first")
    with torch.no_grad():
        hidden, from_classifier = base(**batch)[0], loaded.base_model(**batch)[0]
    torch.testing.assert_close(hidden, from_classifier, atol=0, rtol=0)


@each_architecture
def test_counted_macs_equal_the_cost_tables(model_type):
    """Whatever the tables say was cut is what PyTorch's flop counter misses in the rewritten model.

    That tables are the same for both kinds of attention is a matter of `tests/pricing/test_unit_costs.py`.
    """
    model = tiny_model(model_type)
    pruned = _cut(model, _masks_with_empty_sublayers(find_groups(model)))
    tokens = image_tokens(model, tiny_batch(model)) if modality_of(model) is IMAGES else 10
    batch = probe_batch(model, tokens)
    dense, left = (cost_tables(each, find_groups(each), tokens) for each in (model, pruned))

    def cut(smaller):
        """MACs less, but for what all heads share of a network that makes their position bias."""
        return count_macs(model, batch) - count_macs(smaller, batch) - (_bias_macs(model) - _bias_macs(smaller))

    assert cut(pruned) == dense_cost(dense) - dense_cost(left) > 0
    # What the tables do not hold is embeddings, head and pooler: the same with all sublayers gone.
    bare = _cut(model, {group.key: torch.zeros(group.units, dtype=torch.bool) for group in find_groups(model)})
    assert cut(bare) == dense_cost(dense)


def _bias_macs(model):
    """MACs of the first linears of SwinV2's networks that make a position bias of the distances within a window."""
    attentions = [module for module in model.modules() if hasattr(module, "continuous_position_bias_mlp")]
    distances = [(2 * attention.window_size[0] - 1) ** 2 for attention in attentions]
    return sum(count * 512 * 2 for count in distances)


@each_architecture
def test_prefix_replay_is_exact(model_type):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    groups = find_groups(model)
    layers = find_layers(model)
    with recorded(model, layers) as outputs:
        output_of(model, batch)
    for group in groups:
        index = list(layers).index(group.layer)
        prefix = {name: outputs[name] for name in itertools.islice(layers, index)}
        mask = {group.key: random_masks([group])[group.key].float()}
        with masked(model, [group], mask):
            naive = output_of(model, batch)
            with replayed(model, layers, prefix):
                torch.testing.assert_close(output_of(model, batch), naive, atol=0, rtol=0)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize("model_type", KINDS)
def test_gauss_newton_agrees_with_exact(model_type):
    # Weights this small make a removal a small step, where the second order is the whole of the loss.
    model = tiny_model(model_type)
    if model_type.startswith("siglip"):  # whose weights are initialised to a size, but whose embeddings are not
        for module in model.modules():
            if isinstance(module, torch.nn.Embedding):
                module.weight.data *= 10
    pruner = OptinPruner(model)
    samples = tiny_samples(12, model=pruner.model)
    exact = pruner.score(samples, OptinConfig(scorer="exact"))
    sketched = pruner.score(samples, OptinConfig(scorer="gauss_newton", probes=150))
    assert set(exact.terms) == set(sketched.terms) == {"trajectory", "output"}
    groups = find_groups(pruner.model)
    # Where a sublayer's output is normalised, small weights are as large as others.
    least = 0.6 if model_type.startswith("swinv2") else 0.8
    for term in exact.terms:
        expected, got = (torch.cat([scores.terms[term][group.key] for group in groups]) for scores in (exact, sketched))
        assert spearmanr(expected, got).statistic > 0.98, term
        assert least < float(got.sum() / expected.sum()) < 1.25, term


@each_architecture
def test_pruning_again_composes(model_type, tmp_path):
    model = tiny_model(model_type)
    batch = tiny_batch(model)
    first = random_masks(find_groups(model), seed=1, share=0.75)
    once = _cut(model, first)
    once.save_pretrained(tmp_path / "once")
    once = load(model, tmp_path / "once")
    second = random_masks(find_groups(once), seed=2, share=0.5)
    second[find_groups(once)[0].key][:] = False
    twice = _cut(once, second)
    twice.save_pretrained(tmp_path / "twice")

    both = {key: mask.clone() for key, mask in first.items()}
    for key, mask in both.items():
        mask[mask.clone()] = second[key]
    with masked(model, find_groups(model), both):
        expected = output_of(model, batch)
    loaded = load(model, tmp_path / "twice")
    torch.testing.assert_close(output_of(loaded, batch), expected, atol=1e-5, rtol=1e-5)


@each_architecture
def test_prune_end_to_end(model_type, tmp_path):
    model = tiny_model(model_type)
    pruner = OptinPruner(model)
    pruned = pruner.prune(tiny_samples(model=model), OptinConfig(flops=0.5, probes=16), save_dir=tmp_path / "pruned")
    assert 0.4 < pruner.report.flops_achieved <= 0.5
    loaded = load(model, tmp_path / "pruned")
    batch = tiny_batch(model)
    torch.testing.assert_close(output_of(loaded, batch), output_of(pruned, batch), atol=0, rtol=0)
    assert pruner.report.params_pruned == count_parameters(loaded)
    assert pruner.report.macs_pruned == count_macs(loaded, probe_batch(loaded, pruner.report.tokens))


def test_unknown_architecture_shows_how_to_register():
    model = tiny_model("bert")
    model.config.model_type = "nonesuch"
    with pytest.raises(
        ValueError, match=r"(?s)unknown architecture 'nonesuch'; known: .*bert.*register_architecture"
    ) as error:
        row_of("nonesuch")
    try:
        # The remedy in the message must work as printed.
        lines = [line[4:] for line in str(error.value).splitlines() if line.startswith("    ")]
        exec("\n".join(lines), {})
        assert [group.key for group in find_groups(model)] == [group.key for group in find_groups(tiny_model("bert"))]
    finally:
        from optimum_optin.architectures import registry as architectures

        architectures._ARCHITECTURES.pop("nonesuch", None)


def test_a_row_that_does_not_fit_the_model_says_where():
    from optimum_optin.architectures import registry as architectures

    register_architecture("misfit", Stack("encoder.layer", (neurons(["intermediate.dense"], "output.nowhere"),)))
    try:
        model = tiny_model("bert")
        model.config.model_type = "misfit"
        with pytest.raises(ValueError, match=r"layers\.0 of this 'misfit' model.*nowhere"):
            find_groups(model)
    finally:
        architectures._ARCHITECTURES.pop("misfit")


def test_a_unit_of_a_feed_forward_sublayer_may_be_several_columns_wide():
    from optimum_optin.architectures import registry as architectures

    blocks = neurons(["intermediate.dense"], "output.dense", width=8)
    register_architecture("blocks", Stack("encoder.layer", (blocks,)))
    try:
        model = tiny_model("bert")
        model.config.model_type = "blocks"
        assert [(group.units, group.width) for group in find_groups(model)] == [(6, 8)] * 3
    finally:
        architectures._ARCHITECTURES.pop("blocks")


def test_stacks_need_distinct_names():
    with pytest.raises(ValueError, match="distinct names"):
        register_architecture("twins", Stack("a", ()), Stack("b", ()))


def test_options_of_earlier_rows_warn_and_are_passed_over():
    from optimum_optin import Stack, heads, neurons

    given = ["attention.self", "attention.self.width", ["attention.self.query"], "attention.output.dense"]
    with pytest.warns(FutureWarning, match="scale= is not read any more: where outputs join") as caught:
        assert heads(*given, scale="gamma") == heads(*given)
    assert caught[0].filename == __file__
    for name, value in (("stream", "norm"), ("normed_output", True), ("pre_norm", True)):
        with pytest.warns(FutureWarning, match=f"{name}= is not read any more") as caught:
            assert neurons(["one"], "other", **{name: value}) == neurons(["one"], "other")
        assert caught[0].filename == __file__
    with pytest.warns(FutureWarning, match="pre_norm= is not read any more") as caught:
        assert Stack("layers", (), pre_norm=True) == Stack("layers", ())
    assert caught[0].filename == __file__
