"""Masks of samples where tokens come before samples, as in the decoders of Mask2Former and OneFormer."""

import pytest
import torch
from torch import nn

from optimum_optin.architectures.group import Blocks, Consumer, Cut, Group, Residual
from optimum_optin.editing.masking import masked

CUT = Cut((Consumer("1", 2),), (), reads=(Blocks("1.weight", 1, (2,)),))


@pytest.mark.parametrize("tokens", [5, 6], ids=["no multiple", "a multiple of the samples"])
def test_masks_are_those_of_their_samples(tokens):
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    group = Group("layers.0", "neurons", 3, 2, CUT)
    states, masks = torch.randn(tokens, 3, 4), torch.rand(3, 3)
    with masked(model, [group], {group.key: masks}), torch.no_grad():
        found = model(states)
    for token in range(tokens):
        for sample in range(3):
            units = model[0](states[token, sample]) * masks[sample].repeat_interleave(2)
            torch.testing.assert_close(found[token, sample], model[1](units))


def test_windows_are_not_turned():
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))
    group = Group("layers.0", "neurons", 3, 2, CUT, Residual(windowed=True))
    states, masks = torch.randn(6, 3, 4), torch.rand(3, 3)  # two windows of each sample, of three tokens
    with masked(model, [group], {group.key: masks}), torch.no_grad():
        found = model(states)
    for window in range(6):
        units = model[0](states[window]) * masks[window // 2].repeat_interleave(2)
        torch.testing.assert_close(found[window], model[1](units))
