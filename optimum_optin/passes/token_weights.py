"""Weights of tokens in least squares: how much each matters to the model's output.

A classifier reads its last layer at one token only, so an error at any other token costs nothing there. The squared
gradient of the logits by a sublayer's output says how much an error at a token moves them.
"""

from __future__ import annotations

import torch
from torch import Tensor

_UNIFORM = 0.5  # share of the weights that is the same for every token


def token_weights(gradient: Tensor, valid: Tensor) -> Tensor:
    """Weight of every token at one sublayer.

    Args:
        gradient: gradient of a random functional of the model's output by the sublayer's output, shape (batch,
            tokens, channels).
        valid: the tokens that are not padding, shape (batch, tokens), boolean.

    Returns:
        Weights of mean one over the valid tokens of each sample, 0 at padding; shape (batch, tokens), float32.
    """
    valid = valid.to(gradient.device)  # a model may be spread over devices
    gradient = gradient.float() * valid.unsqueeze(-1)
    largest = gradient.abs().amax(dim=(1, 2), keepdim=True)
    usable = (largest > 0) & largest.isfinite()  # elsewhere the output says nothing about the tokens
    squares = torch.where(usable, gradient / largest, valid.unsqueeze(-1).float()).square().sum(-1)
    relative = squares / (squares.sum(1, keepdim=True) / valid.sum(1, keepdim=True))
    return (_UNIFORM + (1 - _UNIFORM) * relative) * valid
