"""One sample to count with, and how long samples are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..discovery.find import stack_inputs
from ..media.vision import image_tokens
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


def samples_of(model: nn.Module, tokens: int, count: int) -> Batch:
    """So many samples of `tokens` tokens each; see `probe_batch`."""
    return {name: torch.cat([value] * count) for name, value in probe_batch(model, tokens).items()}


def mean_tokens(batches: Sequence[Batch], model: nn.Module) -> int:
    """Mean length of the samples in tokens, rounded, at least 1; of texts without padding, and for pairs, of the texts.

    Of images that differ in size, it is the number of tokens nearest to the mean that some image has.
    """
    if (usual := modality_of(model).usual_tokens) is not None:
        return usual(model)
    samples = sum(map(samples_in, batches))
    if main_input_of(model) == "pixel_values":
        counts = [image_tokens(model, batch) for batch in batches]
        mean = sum(count * samples_in(batch) for count, batch in zip(counts, batches, strict=True)) / samples
        return min(counts, key=lambda count: (abs(count - mean), count))
    stack = next(stack for stack, name in stack_inputs(model).items() if name == main_input_of(model))
    tokens = sum(int(token_masks(model, batch)[stack].sum()) for batch in batches)
    return max(1, round(tokens / samples))
