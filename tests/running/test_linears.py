"""Rows of convolutions: times the weight, they are what the convolution writes."""

import pytest
import torch
from torch import nn
from toys import PaddingConv2d
from transformers.pytorch_utils import Conv1D

from optimum_optin.running.linears import add_to_weight, drawn_places, rows_read, rows_written, weight_of

CONVOLUTIONS = {
    "plain": (nn.Conv2d(4, 5, 3), (2, 4, 8, 7)),
    "strided and padded": (nn.Conv2d(4, 5, (3, 2), stride=(2, 3), padding=(1, 2)), (2, 4, 8, 7)),
    "dilated": (nn.Conv2d(4, 5, 3, dilation=2, padding=2), (2, 4, 8, 7)),
    "the same": (nn.Conv2d(4, 5, (3, 4), padding="same"), (2, 4, 8, 7)),
    "circular": (nn.Conv2d(4, 5, 3, padding=(1, 2), padding_mode="circular"), (2, 4, 8, 7)),
    "padding by itself": (PaddingConv2d(4, 5, 3), (2, 4, 8, 7)),
    "padding by itself at one end": (PaddingConv2d(4, 5, 3, stride=2), (2, 4, 8, 6)),
    "of sounds": (nn.Conv1d(4, 5, 3, stride=2, padding=1), (2, 4, 9)),
    "of volumes": (nn.Conv3d(4, 5, (1, 2, 3), padding=(0, 1, 1)), (2, 4, 3, 4, 5)),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
@torch.no_grad()
def test_rows_times_the_weight_are_what_a_convolution_writes(case):
    module, shape = CONVOLUTIONS[case]
    values = torch.randn(shape)
    written = module(values)
    rows = rows_read(module, values) @ weight_of(module).T + module.bias
    torch.testing.assert_close(rows, rows_written(module, written))
    places = torch.tensor([3, 0, 4])
    some = rows_read(module, values, places) @ weight_of(module).T + module.bias
    torch.testing.assert_close(some, rows_written(module, written, places))
    torch.testing.assert_close(some, rows[:, places])


@pytest.mark.parametrize("module", [nn.Linear(6, 4), Conv1D(4, 6)], ids=["linear", "transposed"])
@torch.no_grad()
def test_a_linear_reads_and_writes_its_tokens_as_they_are(module):
    values = torch.randn(2, 3, 6)
    assert torch.equal(rows_read(module, values), values)
    torch.testing.assert_close(rows_read(module, values) @ weight_of(module).T + module.bias, module(values))
    assert drawn_places(module, module(values), torch.Generator()) is None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@torch.no_grad()
def test_changes_reach_a_weight_of_any_layout(layout):
    module = nn.Conv2d(4, 5, 3).to(memory_format=layout)
    before, change = module.weight.clone(), torch.randn(5, 36)
    add_to_weight(module, change)
    torch.testing.assert_close(module.weight, before + change.view(5, 4, 3, 3))


def test_places_are_drawn_where_there_are_many():
    module, generator = nn.Conv2d(4, 5, 3), torch.Generator().manual_seed(0)
    assert drawn_places(module, torch.zeros(1, 5, 6, 6), generator) is None
    places = drawn_places(module, torch.zeros(1, 5, 30, 30), generator)
    assert len(places) == len(places.unique()) == 64
    assert places.max() < 900
