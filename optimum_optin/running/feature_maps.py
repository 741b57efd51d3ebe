"""Placeholder until the lead's file is on main."""

from torch import Tensor


def as_tokens(hidden: Tensor) -> Tensor:
    if hidden.dim() == 4 and hidden.shape[2] == hidden.shape[3] and hidden.shape[1] != hidden.shape[2]:
        return hidden.flatten(2).transpose(1, 2)
    return hidden.flatten(1, 2) if hidden.dim() == 4 else hidden
