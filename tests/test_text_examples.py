"""The benchmark of causal models: its methods do what their papers say, on a tiny model."""

import sys
from pathlib import Path

import pytest
import torch
from language_models import language_model
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.passes.hooks import observed
from optimum_optin.running.batch import samples_in

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import causal
import slicegpt

PROMPTS = torch.randint(5, 25, (2, 8), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def harness():
    pruner = OptinPruner(language_model(num_hidden_layers=4), word_tokenizer())
    config = OptinConfig(num_samples=16, batch_size=4, block_size=16, probes=1, search="ranked")
    return causal.Harness(pruner, "\n".join(TEXTS * 8), config, PROMPTS)


def read_by(model, path, calibration):
    rows, written = [], []
    for batch in calibration:
        with torch.no_grad(), observed(model, [path]) as seen:
            model(**batch)
        rows.append(seen[path].input.flatten(0, 1))
        written.append(seen[path].output.flatten(0, 1))
    return torch.cat(rows), torch.cat(written)


def test_the_inputs_are_measured_as_by_hand(harness):
    path = harness.groups[0].consumers[0].path
    rows, _ = read_by(harness.model, path, harness.calibration)
    assert sum(map(samples_in, harness.calibration)) * 16 == len(rows)
    torch.testing.assert_close(harness.inputs.mean[path].float(), rows.mean(0))
    torch.testing.assert_close(harness.inputs.variance[path].float(), rows.var(0, correction=0))
    torch.testing.assert_close(harness.inputs.norm[path].float(), rows.norm(dim=0))


@pytest.mark.parametrize("method", [*causal.RANKINGS, "surgeon"])
def test_every_method_keeps_the_share_that_was_asked_for(harness, method):
    masks = (
        causal.ranked(
            harness.model, harness.groups, harness.scores, causal.replace(harness.config, flops=harness.ours(0.7))
        ).masks
        if method == "surgeon"
        else harness.masks(method, 0.7)
    )
    assert 0.6 < harness.share(masks) <= 0.7
    ((cut, _),) = harness.cuts(method, [0.7], False)
    sizes = causal.block_parameters(cut) / causal.block_parameters(harness.model)
    assert sizes == pytest.approx(harness.share(masks), abs=0.03), "norms and FLAP's biases are no units"


def test_flaps_bias_keeps_the_mean_of_what_a_consumer_writes(harness):
    masks, path = harness.masks("flap", 0.6), "model.layers.0.self_attn.o_proj"
    masks = {key: mask if key == "layers.0.heads" else torch.ones_like(mask) for key, mask in masks.items()}
    masks["layers.0.heads"][:] = torch.tensor([True, False])
    cut = causal.copy.deepcopy(harness.model)
    causal.rewrite(cut, harness.groups, masks)
    harness._add_biases(cut, masks)
    (_, dense), (_, found) = (read_by(model, path, harness.calibration) for model in (harness.model, cut))
    torch.testing.assert_close(found.mean(0), dense.mean(0), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_whole_layers_go_where_they_change_least(harness):
    ((cut, _),) = harness.cuts("shortgpt", [0.75], False)
    least = min(harness.inputs.influence, key=harness.inputs.influence.get)
    kept = [number for number in range(4) if f"layers.{number}" != least]
    hidden = harness.model.model.embed_tokens(PROMPTS)
    positions = torch.arange(PROMPTS.shape[1])[None]
    turned = harness.model.model.rotary_emb(hidden, positions)
    mask = torch.full((1, 1, 8, 8), float("-inf")).triu(1)
    for number in kept:
        hidden = causal.first(
            harness.model.model.layers[number](hidden, attention_mask=mask, position_embeddings=turned)
        )
    expected = harness.model.lm_head(harness.model.model.norm(hidden))
    torch.testing.assert_close(cut(PROMPTS).logits, expected, rtol=1e-4, atol=1e-4)
    assert causal.written(cut, PROMPTS, 4).shape == (2, 12)


@torch.no_grad()
def test_slicing_nothing_changes_nothing(harness):
    cut = slicegpt.sliced(harness.model, list(harness.calibration), width=32)
    torch.testing.assert_close(cut(PROMPTS).logits, harness.model(PROMPTS).logits, rtol=1e-4, atol=1e-4)
    assert torch.equal(causal.written(cut, PROMPTS, 4), causal.written(harness.model, PROMPTS, 4))


@torch.no_grad()
def test_a_sliced_model_is_the_dense_one_with_every_blocks_stream_projected(harness):
    """The oracle stays in the dense model's basis, and projects the stream between the blocks."""
    cut = slicegpt.sliced(
        harness.model, list(harness.calibration), width=16
    )  # calibration texts have 18 different tokens
    core, hidden = harness.model.model, harness.model.model.embed_tokens(PROMPTS)
    samples = [core.embed_tokens(batch["input_ids"]) for batch in harness.calibration]
    norms = [norm for layer in core.layers for norm in (layer.input_layernorm, layer.post_attention_layernorm)]
    for number, norm in enumerate([*norms, core.norm]):
        rows = torch.cat([each / each.square().mean(-1, keepdim=True).add(1e-6).sqrt() for each in samples]).flatten(
            0, 1
        )
        directions = torch.linalg.svd(rows.double(), full_matrices=False).Vh[:16].float()
        hidden, samples = hidden @ directions.T @ directions, [each @ directions.T @ directions for each in samples]
        if norm is core.norm:
            break
        layer = core.layers[number // 2]

        def block(stream, layer=layer, norm=norm):
            if norm is layer.post_attention_layernorm:
                return layer.mlp(norm(stream))
            turned = core.rotary_emb(stream, torch.arange(stream.shape[1])[None])
            return layer.self_attn(norm(stream), position_embeddings=turned)[0]

        hidden, samples = hidden + block(hidden), [each + block(each) for each in samples]
    expected = harness.model.lm_head(core.norm(hidden))
    torch.testing.assert_close(cut(PROMPTS).logits, expected, rtol=1e-3, atol=1e-3)
    assert (expected - harness.model(PROMPTS).logits).abs().max() > 0.1, "something was cut"


@torch.no_grad()
def test_a_sliced_models_cache_is_that_of_whole_passes(harness):
    ((cut, _),) = harness.cuts("slicegpt", [0.8], False)
    texts = causal.written(cut, PROMPTS, 4)
    for length in range(8, 12):
        assert torch.equal(cut(texts[:, :length]).logits[:, -1].argmax(-1), texts[:, length])


@pytest.mark.parametrize("budget", [0.9, 0.7, 0.5])
def test_slices_are_the_widest_within_the_budget(harness, budget):
    batches, width = list(harness.calibration), slicegpt.width_within(harness.model, budget)
    sizes = [causal.block_parameters(slicegpt.sliced(harness.model, batches, each)) for each in (width, width + 1)]
    assert sizes[0] <= budget * causal.block_parameters(harness.model) < sizes[1]
