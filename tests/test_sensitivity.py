"""Token weights: by the squared gradient of the output, and where a classifier does not look there is little."""

import torch
from tiny import tiny_batch, tiny_model

from optimum_optin import find_groups
from optimum_optin.sensitivity import token_weights
from optimum_optin.walk import dense_pass


def _weights(model):
    batch = tiny_batch(model)
    start = dense_pass(model, batch, find_groups(model), torch.Generator().manual_seed(0))
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
        if key.startswith("layers.2"):
            assert (weight[:, 0] > 1).all()
            torch.testing.assert_close(weight[:, 1:], 0.5 * valid[:, 1:])
        else:
            assert (weight[:, 1:] > 0.5).any()


def test_without_a_head_every_token_counts_the_same():
    weights, valid = _weights(tiny_model("bert").bert)
    assert all(torch.equal(weight, valid.float()) for weight in weights.values())
