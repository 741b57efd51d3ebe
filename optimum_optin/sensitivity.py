"""How much each token matters to the model's output: the weights of least squares over tokens.

A classifier reads its last layer at one token only, so an error at any other token costs nothing there. The squared
gradient of the output by a sublayer's output says how much an error at a token costs, to second order.
"""

from __future__ import annotations

import torch
from torch import Tensor

_UNIFORM = 0.5  # share of the weights that is the same for every token


def token_weights(gradient: Tensor, valid: Tensor) -> Tensor:
    """Weight of every token at one sublayer.

    Args:
        gradient: of a random functional of the model's output by the sublayer's output, shape (batch, tokens,
            channels).
        valid: the tokens that are not padding, shape (batch, tokens), boolean.

    Returns:
        Weights of mean one over the valid tokens of each sample, 0 at padding; shape (batch, tokens), float32.
    """
    squares = gradient.float().square().sum(-1) * valid
    mean = squares.sum(1, keepdim=True) / valid.sum(1, keepdim=True).clamp_min(1)
    relative = torch.where(mean > 0, squares / mean.clamp_min(1e-30), 1.0)
    return (_UNIFORM + (1 - _UNIFORM) * relative) * valid
