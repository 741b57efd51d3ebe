"""The refit of experts: twins take over, and fresh data come closer to the dense model's outputs."""

import copy

import pytest
import torch
from expert_models import CONFIGS, expert_model, token_batches

from optimum_optin import find_groups
from optimum_optin.compensation.refit import compensate
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import calibrate
from optimum_optin.running.experts import is_packed


def cut(model, keep):
    """A copy whose experts keep some neurons, and the model's groups of experts."""
    groups = find_groups(model).of_role("expert_neurons")
    masks = {group.key: keep(group) for group in groups}
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    return pruned, groups, masks


@torch.no_grad()
def off(pruned, dense, batches):
    logits = [(pruned(**each).logits, dense(**each).logits) for each in batches]
    return sum(float((one - other).square().sum()) for one, other in logits)


def test_twins_take_over():
    """The first eight neurons of an expert are there twice, and a third of them with the others."""
    model = expert_model("mixtral")
    with torch.no_grad():
        for module in filter(is_packed, model.modules()):
            for half in (module.gate_up_proj[:, :24], module.gate_up_proj[:, 24:]):
                half[:, 8:16] = half[:, :8]
                half[:, 16:] = half[:, :8]
    pruned, groups, masks = cut(model, lambda group: group.first(32))
    train, fresh = token_batches(20, samples=4), token_batches(3, seed=1)
    before = off(pruned, model, fresh)
    compensate(model, pruned, groups, calibrate(model, train), masks=masks)
    assert off(pruned, model, fresh) < 1e-3 * before


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "olmoe"])
def test_fresh_data_come_closer(name):
    model = expert_model(name)
    pruned, groups, masks = cut(model, lambda group: group.first(64))
    before = off(pruned, model, fresh := token_batches(4, samples=4, seed=1))
    compensate(model, pruned, groups, calibrate(model, token_batches(20, samples=4)), masks=masks)
    assert off(pruned, model, fresh) < 0.95 * before


@pytest.mark.parametrize("padding", [0, 2], ids=["no tokens", "padding alone"])
def test_an_expert_without_tokens_stays_as_it_is(padding):
    model = expert_model("mixtral")
    pruned, groups, masks = cut(model, lambda group: group.first(64))
    batches = token_batches(10)
    real = torch.ones_like(batches[0]["input_ids"])
    real[:, real.shape[1] - padding :] = 0
    chosen = torch.where(real.flatten()[:, None] == 1, torch.tensor([0, 2]), torch.tensor([1, 3]))
    for layer in (*model.model.layers, *pruned.model.layers):
        layer.mlp.gate.forward = lambda hidden: (
            torch.zeros(len(hidden), 4),
            torch.full((len(hidden), 2), 0.5),
            chosen[: len(hidden)],
        )
    before = copy.deepcopy(pruned.model.layers[1].mlp.experts.down_proj.detach())
    calibration = calibrate(model, [batch | {"attention_mask": real} for batch in batches])
    compensate(model, pruned, groups, calibration, masks=masks)
    after = pruned.model.layers[1].mlp.experts.down_proj.detach()
    moved = (after - before).flatten(1).abs().amax(1)
    assert moved[0] > 0 and moved[2] > 0
    assert moved[1] == 0 and moved[3] == 0
