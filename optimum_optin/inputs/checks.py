"""Whether a model can take batches: found by looking at them, and of images by running one of each size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..running.batch import Batch, token_mask
from .vision import check_images, takes_images, takes_pairs


def check_batches(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take these batches.

    Raises:
        ValueError: see `calibration_batches`.
    """
    if not batches:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    if not takes_images(model):
        check_texts(batches, model)
    if takes_images(model) or takes_pairs(model):
        check_images(batches, model)


def check_texts(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take the token ids of these batches.

    Raises:
        ValueError: see `calibration_batches`.
    """
    vocabulary, longest = model.config.get_text_config().vocab_size, max_tokens(model)
    for number, batch in enumerate(batches):
        ids = batch["input_ids"]
        mask = token_mask(batch)
        if ids.dim() != 2 or (ids.numel() and ids.is_floating_point()):
            raise ValueError(f"input_ids of a batch must be whole numbers of shape (batch, tokens), got {ids.shape}.")
        if mask.shape != ids.shape:
            raise ValueError(f"attention_mask must have the shape of input_ids, {ids.shape}, got {mask.shape}.")
        if ids.numel() == 0 or bool((mask.sum(-1) == 0).any()):
            raise ValueError(f"calibration batch {number} holds a sample that is empty or all padding: drop it.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"token ids run from {int(ids.min())} to {int(ids.max())}, the model's vocabulary from 0 to "
                f"{vocabulary - 1}: the tokenizer is not this model's."
            )
        if ids.shape[1] > longest:
            raise ValueError(f"samples have {ids.shape[1]} tokens, the model takes {longest}: cut them first.")


def max_tokens(model: nn.Module) -> int:
    """How many tokens the model's position embeddings hold."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding):
            # RoBERTa and its kin start counting after the padding index.
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return getattr(model.config.get_text_config(), "max_position_embeddings", None) or 512
