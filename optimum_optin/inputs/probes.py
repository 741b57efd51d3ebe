"""One sample to count with, and how long samples are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from ..architectures.find import stack_inputs
from ..running.batch import Batch, samples_in
from .checks import max_tokens
from .tokens import token_masks
from .vision import probe_images, takes_images, takes_pairs, usual_image


def probe_batch(model: nn.Module, tokens: int) -> Batch:
    """One sample of `tokens` tokens on the model's device, for counting what a forward pass costs.

    For a dual model, a text of so many tokens and an image of the usual size.

    Raises:
        ValueError: the model makes another number of tokens of an image, or takes fewer of a text.
    """
    if takes_images(model):
        return probe_images(model, tokens)
    if tokens > max_tokens(model):
        raise ValueError(f"tokens={tokens} are more than this model takes, {max_tokens(model)}.")
    ids = torch.ones(1, tokens, dtype=torch.long, device=model.device)
    if getattr(model.config, "pad_token_id", None) == 1:  # RoBERTa counts positions by padding
        ids.zero_()
    text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return text | usual_image(model) if takes_pairs(model) else text


def mean_tokens(batches: Sequence[Batch], model: nn.Module) -> int:
    """Mean length of the samples in tokens, padding excluded, rounded, at least 1; of pairs, of the texts."""
    samples = sum(map(samples_in, batches))
    stack = next(stack for stack, name in stack_inputs(model).items() if name == model.main_input_name)
    tokens = sum(int(token_masks(model, batch)[stack].sum()) for batch in batches)
    return max(1, round(tokens / samples))
