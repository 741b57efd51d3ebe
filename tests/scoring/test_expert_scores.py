"""Scores of experts' neurons: a dense network's where one expert does all, and low where the router sends little."""

import copy

import pytest
import torch
from expert_models import expert_model, token_batches
from language_models import language_model

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.passes.calibration import calibrate
from optimum_optin.running.experts import is_packed
from optimum_optin.scoring.scores import score

KEY = "layers.1.expert_neurons"


def scores_of(model, batches, scorer="surgeon"):
    config = OptinConfig(scorer=scorer, probes=2 * len(batches), rows=16)
    return score(model, find_groups(model), calibrate(model, batches), config).terms


def sends_all_to(model, expert):
    """Let every router choose one expert alone, whatever it reads: then another with no weight."""
    for layer in model.model.layers:
        gate = layer.mlp.gate
        gate.forward = lambda hidden, gate=gate: (
            torch.zeros(len(hidden), gate.num_experts),
            torch.ones(len(hidden), 1),
            torch.full((len(hidden), 1), expert),
        )


def test_an_expert_that_does_all_is_scored_as_a_dense_network():
    dense = language_model(intermediate_size=24)
    size = dense.config.vocab_size
    alike = {name: getattr(dense.config, name) for name in ("vocab_size", "rope_parameters", "rms_norm_eps")}
    sparse = expert_model("mixtral", num_experts_per_tok=1, **alike)
    sparse.load_state_dict(dense.state_dict(), strict=False)
    for layer, of in zip(sparse.model.layers, dense.model.layers, strict=True):
        with torch.no_grad():
            layer.mlp.experts.gate_up_proj[2] = torch.cat([of.mlp.gate_proj.weight, of.mlp.up_proj.weight])
            layer.mlp.experts.down_proj[2] = of.mlp.down_proj.weight
    sends_all_to(sparse, 2)
    batches = [{"input_ids": each["input_ids"] % size} for each in token_batches()]
    torch.testing.assert_close(sparse(**batches[0]).logits, dense(**batches[0]).logits, rtol=1e-4, atol=1e-4)
    found, expected = scores_of(sparse, batches), scores_of(dense, batches)
    for term in ("output", "trajectory"):
        experts = found[term][KEY].view(4, 24)
        torch.testing.assert_close(experts[2], expected[term]["layers.1.neurons"], rtol=1e-3, atol=0)
        assert experts[[0, 1, 3]].max() < 1e-6 * experts[2].min()  # given no token, they are last, and in an order
        assert (experts > 0).all() and len(experts[0].unique()) == 24


def test_what_the_router_weighs_less_costs_less():
    """Two experts alike, on the same tokens, one with a tenth of the other's weight."""
    model = expert_model("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            for weight in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
                weight[1] = weight[0]
            layer.mlp.gate.forward = lambda hidden: (
                torch.zeros(len(hidden), 4),
                torch.tensor([[0.9, 0.09]]).expand(len(hidden), 2),
                torch.tensor([[0, 1]]).expand(len(hidden), 2),
            )
    first, second = scores_of(model, token_batches())["output"][KEY].view(4, 24)[:2]
    torch.testing.assert_close(second, first / 100, rtol=1e-3, atol=0)


def test_padding_counts_for_nothing():
    model, short = expert_model("mixtral"), token_batches()
    padded = []
    for each in short:
        ids = torch.cat([each["input_ids"], torch.full((2, 5), 7)], 1)
        padded.append({"input_ids": ids, "attention_mask": torch.ones_like(ids).index_fill(1, torch.arange(16, 21), 0)})
    whole = [{**each, "attention_mask": torch.ones_like(each["input_ids"])} for each in short]
    found, expected = scores_of(model, padded), scores_of(model, whole)
    torch.testing.assert_close(found["trajectory"][KEY], expected["trajectory"][KEY], rtol=1e-3, atol=0)


@pytest.mark.parametrize("scorer", ["gauss_newton", "exact"])
def test_other_scorers_take_experts(scorer):
    """Neurons that write nothing cost nothing, those that write much cost much."""
    model = expert_model("mixtral")
    for module in filter(is_packed, model.modules()):
        with torch.no_grad():
            module.down_proj[:, :, :8] = 0
            module.down_proj[:, :, 8:16] *= 10
    found = scores_of(model, token_batches(2, tokens=6), scorer)["output"][KEY].view(4, 24)
    assert found[:, :8].max() < 1e-6 * found[:, 8:16].mean()
    assert found[:, 8:16].mean() > 10 * found[:, 16:].mean()


def test_experts_keep_equally_many_each_its_own():
    model = expert_model("mixtral")
    before = copy.deepcopy(model.state_dict())
    samples = [{"input_ids": row.tolist()} for each in token_batches(8) for row in each["input_ids"]]
    pruner = OptinPruner(model)
    pruned = pruner.prune(samples, OptinConfig(flops=0.6, batch_size=4, search="ranked"))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    report = pruner.report
    kept = [report.layers[f"layers.{layer}"]["expert_neurons"]["kept"] for layer in range(2)]
    for layer, count in zip(pruned.model.layers, kept, strict=True):
        experts = layer.mlp.experts
        assert experts.gate_up_proj.shape == (4, count // 2, 32) and experts.down_proj.shape == (4, 32, count // 4)
        assert count % 32 == 0 and experts.num_experts == 4
    assert report.flops_achieved <= 0.6 and not report.refit
    # Each of a sample's tokens goes through two of four experts, three products each.
    tokens, heads = report.tokens, [report.layers[f"layers.{layer}"]["heads"]["kept"] for layer in range(2)]
    saved = sum(96 - count for count in kept) * tokens * 2 * 3 * 32 / 4
    of_a_head = 2 * tokens * 8 * 32 * 3 + 2 * 2 * tokens**2 * 8
    assert report.macs_dense - report.macs_pruned == saved + (4 - sum(heads)) * of_a_head
