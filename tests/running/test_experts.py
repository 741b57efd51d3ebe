"""Packed experts: what each reads adds up to what the module returns, and what they own is sliced expert by expert."""

import pytest
import torch
from expert_models import CONFIGS, expert_model, token_batches

from optimum_optin.architectures.group import Blocks
from optimum_optin.running.experts import add_to_expert, is_packed, routed, weight_of_expert, written_by_experts


def called_with(model):
    """The last packed experts of a model, and what they are called with."""
    module = [each for each in model.modules() if is_packed(each)][-1]
    seen = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args))
    model(**token_batches(1)[0])
    handle.remove()
    return module, seen[-1]


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_what_experts_make_of_their_tokens_adds_up(name):
    """Gates side by side and in turns, without a gate, with biases, weights either way round."""
    module, read = called_with(expert_model(name))
    torch.testing.assert_close(written_by_experts(module, read), module(*read), rtol=1e-4, atol=1e-5)
    own, expert = routed(module, read, 1), 1
    change = torch.randn_like(weight_of_expert(module, expert))
    before = module(*read)
    add_to_expert(module, expert, change)
    moved = torch.zeros_like(before).index_add(0, own.tokens, own.inputs @ change.T)
    torch.testing.assert_close(module(*read) - before, moved, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dim", "widths"), [(1, (1, 1)), (2, (2,)), (2, (1,))], ids=["packed", "in turns", "plain"])
def test_blocks_by_expert_are_those_of_each(dim, widths):
    units, experts = 6, 3
    tensor = torch.randn([experts, 5, 5][:dim] + [units * sum(widths)] + [5] * (2 - dim))
    part = Blocks("weight", dim, widths, apart=0)
    kept = torch.tensor([[0, 3], [1, 2], [5, 4]])
    chosen = (kept + units * torch.arange(experts)[:, None]).flatten()
    found = part.taken(tensor, units * experts, chosen)
    mask = torch.zeros(units * experts).index_fill(0, chosen, 1.0)
    masked = tensor * part.factors(tensor, mask)
    alone = Blocks("weight", dim - 1, widths)
    for expert, own in enumerate(kept):
        torch.testing.assert_close(found[expert], alone.taken(tensor[expert], units, own))
        inside = torch.zeros(units).index_fill(0, own, 1.0)
        torch.testing.assert_close(masked[expert], tensor[expert] * alone.factors(tensor[expert], inside))
