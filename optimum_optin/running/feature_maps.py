"""Feature maps as tokens: every place of a map is one."""

from __future__ import annotations

from torch import Tensor


def as_tokens(hidden: Tensor, is_map: bool = False) -> Tensor:
    """Hidden states in whatever form, as tokens.

    Args:
        hidden: shape (batch, tokens, channels), (batch, channels) for one token, or (batch, ..., channels) with places
            in several dimensions; of a feature map (batch, channels, ...).
        is_map: whether the channels come first (`Groups.maps`).

    Returns:
        Shape (batch, tokens, channels).
    """
    if is_map:
        return hidden.flatten(2).transpose(1, 2)
    return hidden.unsqueeze(1) if hidden.dim() == 2 else hidden.flatten(1, -2)
