"""Which tokens are real: for every stack of a model, a mask of the tokens that its first layer gets."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from ..discovery.find import stack_inputs
from ..running.batch import Batch
from .modalities import modality_of

TokenMasks = Mapping[str, Tensor]
"""Stack name -> which tokens are real, shape (batch, tokens), boolean."""


def token_masks(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Which tokens of a batch are real in every stack: those of a text but padding, and all of an image."""
    modality = modality_of(model)
    if modality.stack_tokens is not None:
        return modality.stack_tokens(model, batch)
    real_tokens = modality.real_tokens
    return {stack: real_tokens[name](model, batch, stack) for stack, name in stack_inputs(model).items()}


def token_rows(mask: Tensor) -> Tensor:
    """Where the real tokens of a stack are: indices into batch * tokens, shape (real tokens,)."""
    return mask.flatten().nonzero().flatten()
