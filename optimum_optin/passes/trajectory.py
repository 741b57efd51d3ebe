"""The network's trajectory: which tokens are compared, and their features after each layer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..architectures.group import stack_of
from ..comparing.losses import token_features
from ..inputs.tokens import TokenMasks, token_rows
from ..merging.hooks import MergedTokens
from ..running.feature_maps import as_tokens
from ..running.forward import first_of

Rows = Mapping[str, Tensor]
"""Stack name -> token positions to compare: indices into batch * tokens of its first layer, shape (K,)."""


def hidden_states(output: Any) -> Tensor:
    """The hidden states in whatever a layer returns, merged tokens restored; see `as_tokens` for their shape."""
    if isinstance(output, MergedTokens):
        return output.restored()
    return first_of(output)


def draw_rows(real: TokenMasks, rows: int, generator: torch.Generator) -> Rows:
    """The token positions to compare in every stack: drawn once per batch, padding excluded.

    Args:
        real: the batch's real tokens.
        rows: positions to draw in each stack, at most as many as the batch has tokens.
        generator: source of the draw.
    """
    drawn = {}
    for stack, mask in real.items():
        valid = token_rows(mask)
        order = torch.randperm(len(valid), generator=generator)
        drawn[stack] = valid[order[:rows].to(valid.device)]
    return drawn


def layer_rows(rows: Tensor, hidden: Tensor, tokens: int) -> Tensor:
    """The rows of a layer's hidden states that stand for the given rows of the first layer, each once.

    Args:
        rows: indices into batch * tokens of the first layer.
        hidden: hidden states of the layer, which may have fewer tokens, each in the place of several.
        tokens: how many tokens of each sample the first layer gets.
    """
    rows = rows.to(hidden.device)
    return rows if tokens == hidden.shape[1] else (rows * hidden.shape[1] // tokens).unique()


def trajectory_features(
    outputs: Mapping[str, Any], rows: Rows, real: TokenMasks, maps: Collection[str] = ()
) -> dict[str, Tensor]:
    """Normalised features of the compared tokens after each layer: name -> shape (K, channels).

    Args:
        outputs: what the layers returned, by name.
        rows: see `draw_rows`.
        real: the batch's real tokens.
        maps: names of the layers that return feature maps (`Groups.maps`); each place is a token.

    Raises:
        ValueError: a layer's output is not finite; names the first such layer.
    """
    features = {}
    for name, output in outputs.items():
        hidden = as_tokens(hidden_states(output), name in maps)
        stack = stack_of(name)
        features[name] = token_features(hidden, layer_rows(rows[stack], hidden, real[stack].shape[1]))
        if not features[name].isfinite().all():
            raise ValueError(
                f"the output of {name} is not finite on the calibration data: "
                "check the weights, and prefer float32 or bfloat16 to float16."
            )
    return features
