"""How much of a model's sums is in memory at once."""

import torch
from torch import nn

from optimum_optin.scoring.parts import room_for


def test_sums_may_take_a_third_of_what_the_model_does_and_half_a_gigabyte_at_least():
    with torch.device("meta"):
        large, small = nn.Linear(30_000, 30_000, bias=False), nn.Linear(3, 3)
    assert room_for(large) == 30_000**2 * 4 // 3
    assert room_for(large.bfloat16()) == 30_000**2 * 2 // 3
    assert room_for(small) == room_for(nn.Linear(10_000, 10_000, device="meta")) == 2**29
