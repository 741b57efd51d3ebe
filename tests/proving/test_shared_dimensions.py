"""Groups that own parts of one dimension: channels of several convolutions, concatenated before the next."""

import torch
from torch import nn
from toys import perturbed

from optimum_optin import check_architecture, find_groups, masked
from optimum_optin.editing.surgery import follow_shapes, groups_after, rewrite


class Concatenated(nn.Module):
    """Two branches, whose channels one convolution reads, and a layer whose output is channels of the next."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 10, 1)
        self.both, self.head = nn.Conv2d(16, 12, 1), nn.Conv2d(12, 5, 1)

    def forward(self, pixels):
        return self.head(self.both(torch.cat([self.first(pixels).relu(), self.second(pixels).relu()], 1)).relu())


SAMPLE = {"pixels": torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))}


def test_groups_that_share_a_dimension_are_proved_together():
    proof = check_architecture(perturbed(Concatenated()), SAMPLE)
    assert sorted(each.group.units for each in proof.groups) == [6, 10, 12]
    assert [each.cut for each in proof.groups] == [None] * 3


def test_what_is_cut_of_one_group_moves_the_other_one():
    model = perturbed(Concatenated())
    groups = find_groups(model, SAMPLE)
    kept = {group.key: torch.arange(group.units) % 3 != 0 for group in groups}
    with torch.no_grad(), masked(model, groups, kept):
        expected = model(**SAMPLE)
    rewrite(model, groups, kept)
    after = groups_after(groups, kept)
    with torch.no_grad():
        assert torch.allclose(model(**SAMPLE), expected, atol=1e-6)
    # The groups are those of the smaller model: cut once more, it is what it is masked.
    fewer = {group.key: torch.arange(group.units) > 0 for group in after}
    with torch.no_grad(), masked(model, after, fewer):
        expected = model(**SAMPLE)
    rewrite(model, after, fewer)
    with torch.no_grad():
        assert torch.allclose(model(**SAMPLE), expected, atol=1e-6)


class PerHead(nn.LayerNorm):
    """Normalises over a head's channels, with weights for every head (Chameleon)."""

    def __init__(self, heads, width):
        super().__init__(width)
        self.weight, self.bias = nn.Parameter(torch.ones(heads, width)), nn.Parameter(torch.zeros(heads, width))


def test_what_is_normalised_stays_if_the_weights_are_of_another_form():
    norm = PerHead(4, 8)
    norm.weight = nn.Parameter(norm.weight[:2].detach())
    follow_shapes(norm)
    assert norm.normalized_shape == (8,)
