"""PyTorch's multi-head attention in plain operations computes what PyTorch's own functions do."""

import itertools

import pytest
import torch
from torch import nn

from optimum_optin.running.freezing import frozen
from optimum_optin.running.multihead import PlainHeads, run_plainly, running_plainly

FORMS = {
    "batch first": {"batch_first": True},
    "batch second": {},
    "widths of keys and values": {"kdim": 12, "vdim": 20},
    "learned and empty keys": {"add_bias_kv": True, "add_zero_attn": True},
    "no bias": {"bias": False},
}


def attention(**options):
    torch.manual_seed(0)
    module = nn.MultiheadAttention(32, 4, **options).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return module


def inputs(module):
    def drawn(tokens, width):
        return torch.randn((2, tokens, width) if module.batch_first else (tokens, 2, width))

    return drawn(5, 32), drawn(7, module.kdim), drawn(7, module.vdim)


@pytest.mark.parametrize("form", FORMS)
def test_it_computes_the_same_for_all_masks(form):
    module = attention(**FORMS[form])
    given = inputs(module)
    last = torch.tensor([[False] * 7, [False] * 5 + [True] * 2])
    booleans = (None, torch.rand(5, 7) > 0.7), (None, last)
    numbers = (torch.randn(8, 5, 7),), (None, torch.zeros(2, 7).masked_fill(last, -torch.inf))
    cases = [*itertools.product(*booleans), *itertools.product(*numbers)]
    for (mask, padding), average in itertools.product(cases, (True, False)):
        options = {"attn_mask": mask, "key_padding_mask": padding, "average_attn_weights": average}
        expected = module(*given, **options)
        with running_plainly([module]):
            found = module(*given, **options)
        assert all(torch.allclose(*pair, atol=1e-6) for pair in zip(found, expected, strict=True))
        assert type(module) is nn.MultiheadAttention and "forward" not in vars(module)


def test_without_a_batch_and_without_weights():
    module, x = attention(), torch.randn(5, 32)
    expected = module(x, x, x)
    with frozen(module):
        found, (alone, nothing) = module(x, x, x), module(x, x, x, need_weights=False)
    assert torch.allclose(found[0], expected[0], atol=1e-6) and torch.allclose(found[1], expected[1], atol=1e-6)
    assert torch.allclose(alone, expected[0], atol=1e-6) and nothing is None


def test_what_it_cannot_read_is_refused():
    module = attention(batch_first=True)
    run_plainly(module)
    x = torch.randn(2, 5, 32)
    with pytest.raises(ValueError, match="needs attn_mask"):
        module(x, x, x, is_causal=True)
    with pytest.raises(ValueError, match="6 maps for a batch of 2 and 4 heads"):
        module(x, x, x, attn_mask=torch.randn(6, 5, 5))
    nested = torch.nested.nested_tensor([torch.randn(3, 32), torch.randn(5, 32)])
    with pytest.raises(ValueError, match="use_nested_tensor=False"):
        module(nested, nested, nested)


def test_an_error_inside_leaves_the_class_as_it_was():
    module = attention()
    with pytest.raises(KeyboardInterrupt), frozen(module):
        assert type(module) is PlainHeads
        raise KeyboardInterrupt
    assert type(module) is nn.MultiheadAttention and module._qkv_same_embed_dim


def test_maps_that_are_the_same_for_all_heads_fit_any_number_of_them():
    """Mask2Former makes as many as its config has heads, all alike."""
    module = attention()
    run_plainly(module)
    given = inputs(module)
    alike = torch.randn(2, 1, 5, 7)
    expected = module(*given, attn_mask=alike.repeat(1, 4, 1, 1).flatten(0, 1))
    found = module(*given, attn_mask=alike.repeat(1, 6, 1, 1).flatten(0, 1))
    assert all(torch.equal(*pair) for pair in zip(found, expected, strict=True))
    for maps in (alike.repeat(1, 6, 1, 1) + torch.randn(2, 6, 1, 1), torch.zeros(1, 7, 5, 7)):
        with pytest.raises(ValueError, match="attn_mask has .* one map for all heads"):
            module(*given, attn_mask=maps.flatten(0, 1))
