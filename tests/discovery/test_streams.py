"""Which inputs the tokens of a stack are made of."""

import torch
from torch import nn

from optimum_optin.discovery.streams import inputs_of


class Sized(nn.Module):
    """Refuses tokens of other sizes than it is told, as models do that read an image's height and width."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, pixels, sizes):
        if sizes.tolist() != [[pixels.shape[1], pixels.shape[2]]]:
            raise ValueError("the image has other sizes")
        return self.layers[1](self.layers[0](pixels))


def test_an_input_that_can_have_no_other_values_makes_no_tokens():
    sample = {"pixels": torch.randn(1, 3, 4), "sizes": torch.tensor([[3, 4]])}
    layers = {"layers.0": "layers.0", "layers.1": "layers.1"}
    assert inputs_of(Sized(), layers, sample) == {"layers": "pixels"}
