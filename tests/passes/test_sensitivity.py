"""Token weights: by the squared gradient of the output, and where a classifier does not look there is little."""

import torch
from tiny import tiny_batch, tiny_model
from walks import walked_to

from optimum_optin import OptinConfig, find_groups
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.passes.token_weights import token_weights


def _weights(model):
    batch = tiny_batch(model)
    (start,) = dense_passes(model, find_groups(model), calibrate(model, [batch]), OptinConfig())
    return start.weights, batch["attention_mask"].bool()


def test_half_is_uniform_and_half_follows_the_squares():
    gradient = torch.tensor([[[3.0, 4.0], [0.0, 0.0], [9.0, 9.0]]])
    weights = token_weights(gradient, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([[0.5 + 0.5 * 2, 0.5, 0.0]]))


def test_a_sample_without_gradient_is_uniform():
    weights = token_weights(torch.zeros(1, 3, 4), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(weights, torch.tensor([[1.0, 1.0, 0.0]]))


def test_a_classifier_reads_its_last_layer_at_one_token_only():
    weights, valid = _weights(tiny_model("bert"))
    for key, weight in weights.items():
        torch.testing.assert_close(weight.sum(1), valid.sum(1).float())
        assert not weight[~valid].any()
        if "layer.2." in key:
            assert (weight[:, 0] > 1).all()
            torch.testing.assert_close(weight[:, 1:], 0.5 * valid[:, 1:])
        else:
            assert (weight[:, 1:] > 0.5).any()


def test_without_a_head_every_token_counts_the_same():
    weights, valid = _weights(tiny_model("bert").bert)
    assert all(torch.equal(weight, valid.float()) for weight in weights.values())


def test_huge_and_tiny_gradients_still_weigh():
    valid = torch.tensor([[True, True]])
    for scale in (1e-30, 1e30):
        gradient = scale * torch.tensor([[[1.0], [3.0]]])
        torch.testing.assert_close(token_weights(gradient, valid), torch.tensor([[0.6, 1.4]]))
    broken = torch.tensor([[[float("inf")], [1.0]]])
    torch.testing.assert_close(token_weights(broken, valid), torch.ones(1, 2))


@torch.no_grad()
def test_attention_reads_every_token_alike_and_a_feed_forward_its_own():
    model = tiny_model()
    batch = tiny_batch(model)
    groups = find_groups(model)
    valid = batch["attention_mask"].bool()
    (start,) = dense_passes(model, groups, calibrate(model, [batch]), OptinConfig())
    for role in ("heads", "neurons"):
        with walked_to(model, model, batch, f"layers.0.{role}", producers=True) as (stop, walk):
            _, errors, weights = walk.input_errors(stop)
        expected = valid.float() if role == "heads" else start.weights[stop.group.consumer]
        torch.testing.assert_close(weights, expected[valid])
        assert not errors.any()
