"""Models that predict the next token: what is asked of one before it is measured, and how likely it finds a text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from ..discovery.next_tokens import predicts_next_token
from ..models.identity import config_of

_MOST_LOGITS = 2**27  # of a pass: half a gigabyte in float32
_MOST_AT_ONCE = 2**24  # of a sum: what a softmax copies


def check_causal(model: nn.Module, processor: Any, task: str) -> None:
    """Raise if a model does not predict the next token, or there is no tokenizer.

    Raises:
        ValueError: says what fits.
    """
    if config_of(model) is None or not predicts_next_token(model):
        raise ValueError(
            f"{task} needs a causal language model, whose logits at each token are for the next one, and "
            f"{type(model).__name__} is none: load the model with task='text-generation', or measure it on its own "
            "task."
        )
    if processor is None:
        raise ValueError(f"{task} is measured on text: pass the model's tokenizer as processor=.")


def check_vocabulary(tokens: Iterable[int], model: nn.Module) -> None:
    """Raise if a model's vocabulary does not have these tokens.

    Raises:
        ValueError: says so.
    """
    vocabulary, last = model.config.get_text_config().vocab_size, max(tokens)
    if last >= vocabulary:
        raise ValueError(
            f"the tokenizer gives ids up to {last}, the model's vocabulary ends at {vocabulary - 1}: the tokenizer is "
            "not this model's."
        )


def most_at_once(model: nn.Module, length: int) -> int:
    """How many texts of so many tokens have logits that memory has room for, at least one."""
    return max(1, _MOST_LOGITS // (length * model.config.get_text_config().vocab_size))


def surprises(logits: Tensor, tokens: Tensor) -> Tensor:
    """-log p of every token but the first, by the logits at the token before it.

    Args:
        logits: shape (tokens, vocabulary).
        tokens: shape (tokens,).

    Returns:
        Shape (tokens - 1,), float32. No more than some of the logits are copied at once.
    """
    rows = max(1, _MOST_AT_ONCE // logits.shape[-1])
    parts = zip(logits[:-1].split(rows), tokens[1:].to(logits.device).split(rows), strict=True)
    return torch.cat([cross_entropy(part.float(), targets, reduction="none") for part, targets in parts])
