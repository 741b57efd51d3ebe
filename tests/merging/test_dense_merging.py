"""Merged tokens where every token is read: feature maps of backbones, segmenters around them, heads of one's own."""

import copy

import pytest
import torch
import transformers as tr
from dense import LABELS, SIZE, dense_model, images
from tiny import perturbed

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.media.vision import image_tokens, prefix_tokens, usual_image
from optimum_optin.merging.hooks import MergingLayer, attach_mergers, attach_merging, is_mergeable, merging
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.merging.stack import key_paths, token_layers
from optimum_optin.passes.hooks import recorded
from optimum_optin.pricing.macs import cost_tables, count_macs, token_costs, total_cost
from optimum_optin.pricing.unit_costs import unit_macs
from optimum_optin.search.trials import Trials

STAGES = ["stage1", "stage2", "stage3", "stage4"]
DINOV2 = {
    "image_size": SIZE,
    "patch_size": 4,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "mlp_ratio": 2,
    "out_features": STAGES,
}
MERGES = (9, 0, 7, 0)  # after each layer


def dinov2_backbone(**options):
    torch.manual_seed(0)
    return perturbed(tr.Dinov2Backbone(tr.Dinov2Config(**DINOV2, **options)))


def registers_backbone(**options):
    torch.manual_seed(0)
    return perturbed(tr.Dinov2WithRegistersBackbone(tr.Dinov2WithRegistersConfig(**DINOV2, **options)))


def upernet():
    """A segmenter that reads what every layer of its backbone returns."""
    torch.manual_seed(0)
    head = {"hidden_size": 16, "pool_scales": [1, 2], "use_auxiliary_head": False, "num_labels": LABELS}
    config = tr.UperNetConfig(backbone_config=tr.Dinov2Config(**DINOV2), **head)
    return perturbed(tr.UperNetForSemanticSegmentation(config))


@pytest.fixture(scope="module")
def segmenter():
    """One UPerNet, whose groups take a while to find."""
    return upernet()


def _schedule(model, merges=MERGES):
    return TokenSchedule(prefix_tokens(model), dict(zip(token_layers(model, find_groups(model)), merges, strict=True)))


def _averaged(hidden, places):
    """Tokens set to the mean of those at their place, sample by sample and place by place."""
    averaged = hidden.clone()
    for sample, places_of in enumerate(places):
        for place in places_of.unique():
            averaged[sample, places_of == place] = hidden[sample, places_of == place].mean(0)
    return averaged


@pytest.mark.parametrize("make", [dinov2_backbone, registers_backbone])
@pytest.mark.parametrize(
    "options", [{}, {"reshape_hidden_states": False, "apply_layernorm": False}], ids=["maps", "rows"]
)
@torch.no_grad()
def test_every_feature_map_has_every_token(make, options):
    """Those of the dense model with merged tokens set to their mean, and what each was apart added where it is read."""
    model, pixels = make(**options), images(2)
    layers = find_groups(model).layers
    with merging(model, find_groups(model), _schedule(model)), recorded(model, layers) as outputs:
        found = model(pixels)
    hidden, apart, seen = model.embeddings(pixels), 0, []
    for number, (layer, path) in enumerate(layers.items()):
        hidden = model.get_submodule(path)(hidden)
        if MERGES[number]:
            averaged = _averaged(hidden, outputs[layer].places)
            hidden, apart = averaged, apart + hidden - averaged
        seen.append(hidden + apart)
    dense = model(pixels)
    for number, tokens in enumerate(seen):
        read = model.layernorm(tokens) if model.config.apply_layernorm else tokens
        if model.config.reshape_hidden_states:
            side = SIZE // 4
            read = read[:, prefix_tokens(model) :].transpose(1, 2).unflatten(2, (side, side))
        torch.testing.assert_close(found.feature_maps[number], read, rtol=1e-4, atol=1e-4)
    assert (found.feature_maps[0] - dense.feature_maps[0]).abs().max() < 1e-5, "what is merged after it is back"
    assert (found.feature_maps[3] - dense.feature_maps[3]).abs().max() > 1e-3, "merging must matter"


@torch.no_grad()
def test_hidden_states_have_every_token():
    model = dense_model("dinov2").dinov2
    schedule = _schedule(model, (9, 7, 0))
    dense = model(images(2), output_hidden_states=True).hidden_states
    with merging(model, find_groups(model), schedule):
        found = model(images(2), output_hidden_states=True).hidden_states
    assert [each.shape for each in found] == [each.shape for each in dense]


@torch.no_grad()
def test_a_backbone_compiles_whole():
    model, pixels = dinov2_backbone(), images(2)
    attach_merging(model, find_groups(model), _schedule(model))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    for found, expected in zip(compiled(pixels).feature_maps, model(pixels).feature_maps, strict=True):
        torch.testing.assert_close(found, expected)


def test_a_segmenter_merges_tokens_of_its_backbone(segmenter):
    paths = [f"backbone.encoder.layer.{number}" for number in range(4)]
    assert key_paths(segmenter) == {path: f"{path}.attention.k_proj" for path in paths}
    assert prefix_tokens(segmenter) == 1


@pytest.mark.parametrize("around", ["dpt", "depth_anything"])
@torch.no_grad()
def test_models_of_depth_read_every_token_of_their_backbone(around):
    """Without a search for their groups, which takes long: layers and keys are those of the backbone."""
    backbone = tr.Dinov2Config(**DINOV2, reshape_hidden_states=False)
    sizes = {"neck_hidden_sizes": [8] * 4, "fusion_hidden_size": 8, "patch_size": 4}
    if around == "dpt":
        config = tr.DPTConfig(backbone_config=backbone, hidden_size=32, is_hybrid=False, **sizes)
    else:
        config = tr.DepthAnythingConfig(backbone_config=backbone, reassemble_hidden_size=32, **sizes)
    model, pixels = perturbed(tr.AutoModelForDepthEstimation.from_config(config)), images(2)
    dense = model(pixels).predicted_depth
    layers = [MergingLayer(f"layers.{n}", path, keys, 8) for n, (path, keys) in enumerate(key_paths(model).items())]
    assert len(layers) == 4
    schedule = TokenSchedule(1, {each.layer: pairs for each, pairs in zip(layers, MERGES, strict=True)})
    handles = attach_mergers(model, layers, schedule)
    found = model(pixels).predicted_depth
    assert found.shape == dense.shape and not torch.equal(found, dense)
    for handle in handles:
        handle.remove()
    attach_mergers(model, layers, TokenSchedule(1))
    torch.testing.assert_close(model(pixels).predicted_depth, dense)


def test_a_segmenter_costs_what_is_counted(segmenter):
    groups, pixels = find_groups(segmenter), {"pixel_values": images(1)}
    tokens, schedule = image_tokens(segmenter, usual_image(segmenter)), _schedule(segmenter)
    merging_model = copy.deepcopy(segmenter)
    attach_merging(merging_model, groups, schedule)
    saved = count_macs(segmenter, pixels) - count_macs(merging_model, pixels)
    assert total_cost(segmenter, groups, tokens) - total_cost(segmenter, groups, tokens, schedule) == saved > 0
    outside = [group.key for group in groups if group.layer not in token_layers(segmenter, groups)]
    costs, merged = (cost_tables(segmenter, groups, tokens, each) for each in (None, schedule))
    assert all(torch.equal(costs[key], merged[key]) for key in outside), "a head has its places, whatever is merged"
    assert list(token_costs(segmenter, groups, tokens).layers) == list(token_layers(segmenter, groups))
    macs = unit_macs(segmenter, groups, pixels)
    assert all(float(costs[key][1]) == pytest.approx(macs[key]) for key in costs if key not in outside)


def test_a_segmenter_that_merges_comes_back_from_disk(segmenter, tmp_path):
    data = [{"pixel_values": image} for image in images(8)]
    config = OptinConfig(flops=0.7, probes=4, rows=16, batch_size=4, min_heads=0, merging=MERGES)
    pruner = OptinPruner(segmenter)
    pruned = pruner.prune(data, config, save_dir=tmp_path)
    assert sum(pruner.report.merges.values()) == 16
    assert pruner.report.flops_achieved <= 0.7
    loaded = tr.AutoModelForSemanticSegmentation.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        found, expected, dense = (each(images(2, seed=3)).logits for each in (loaded, pruned, segmenter.eval()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert (found - dense).abs().max() > 1e-3


def test_auto_tries_schedules_by_what_every_pixel_is_called(tmp_path, monkeypatch):
    """On a head of one's own: the schedule whose trial cut diverges least, pixel by pixel, is the one that is saved."""
    model = dense_model("dinov2")
    tried, compared = [], Trials._divergences
    monkeypatch.setattr(Trials, "_divergences", lambda self, choices: _note(tried, choices, compared(self, choices)))
    pruner = OptinPruner(model)
    data = [{"pixel_values": image} for image in images(16)]
    pruned = pruner.prune(data, OptinConfig(flops=0.6, probes=4, merging="auto"), save_dir=tmp_path)
    schedules = [choice.schedule for choice, _ in tried]
    assert None in schedules and len({str(each) for each in schedules}) > 2
    best = min(tried, key=lambda each: each[1])[0].schedule
    assert pruner.report.merges == (best.to_json()["merges"] if best else {})
    loaded = type(model).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(images(2)).logits, pruned(images(2)).logits, rtol=0, atol=0)


def _note(tried, choices, distances):
    tried += zip(choices, distances, strict=True)
    return distances


@pytest.mark.parametrize("name", ["beit", "eomt", "yolos", "segformer", "mask2former", "detr"])
def test_what_cannot_merge_is_refused(name):
    model = dense_model(name)
    assert not is_mergeable(model)
    with pytest.raises(ValueError, match="cannot be merged; those of .* can, and those of models of images"):
        key_paths(model)


def test_numbers_are_refused_before_work(monkeypatch):
    monkeypatch.setattr("optimum_optin.pruner.score", None)
    data = [{"pixel_values": image} for image in images(4)]
    with pytest.raises(ValueError, match="tokens of this 'beit' model cannot be merged"):
        OptinPruner(dense_model("beit")).prune(data, OptinConfig(flops=0.6, merging=[3, 0, 0, 0]))


def test_a_backbone_that_cannot_merge_is_named():
    config = tr.SwinConfig(embed_dim=16, depths=[1, 1], num_heads=[2, 2], out_features=["stage1", "stage2"])
    head = {"hidden_size": 16, "use_auxiliary_head": False}
    model = tr.UperNetForSemanticSegmentation(tr.UperNetConfig(backbone_config=config, **head))
    with pytest.raises(ValueError, match="tokens of this 'swin' model cannot be merged"):
        key_paths(model)
