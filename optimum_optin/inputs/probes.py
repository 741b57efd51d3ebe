"""One sample to count with, and how long samples are."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..discovery.find import stack_inputs
from ..models.identity import main_input_of
from ..running.batch import Batch, samples_in
from .modalities import modality_of
from .tokens import token_masks


def probe_batch(model: nn.Module, tokens: int) -> Batch:
    """One sample of `tokens` tokens on the model's device, for counting what a forward pass costs.

    For a dual model, it is a text of `tokens` tokens and an image of the usual size.

    Raises:
        ValueError: the model makes another number of tokens of an image, or takes fewer of a text.
    """
    return modality_of(model).probe(model, tokens)


def mean_tokens(batches: Sequence[Batch], model: nn.Module) -> int:
    """Mean length of the samples in tokens, padding excluded, rounded, at least 1; for pairs, that of the texts."""
    if (usual := modality_of(model).usual_tokens) is not None:
        return usual(model)
    samples = sum(map(samples_in, batches))
    stack = next(stack for stack, name in stack_inputs(model).items() if name == main_input_of(model))
    tokens = sum(int(token_masks(model, batch)[stack].sum()) for batch in batches)
    return max(1, round(tokens / samples))
