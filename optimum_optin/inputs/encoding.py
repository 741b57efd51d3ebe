"""Texts as token ids: from samples to padded batches, and whether a model takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..models.copies import working_copy
from ..reading.columns import check_unused
from ..reading.plain_text import without_surrogates
from ..running.batch import Batch, token_mask
from ..running.forward import takes
from ..running.processes import is_main
from .texts import leave_out, read_texts

logger = logging.get_logger(__name__)

# SigLIP's text tower reads the last token, and its samples are filled up to full length without a mask.
_OF_FULL_LENGTH = ("siglip", "siglip_text_model")
TARGETS = (
    "label",
    "labels",
    "label_ids",
    "class_labels",
    "mask_labels",
    "start_positions",
    "end_positions",
    "next_sentence_label",
)


def text_batches(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    max_length: int | None = None,
    unreadable: str = "skip",
    text_columns: Sequence[str | int] | None = None,
) -> list[Batch]:
    """Padded batches of the samples that hold text; arguments as for `calibration_batches`, but samples by row."""
    options = {"max_length": max_length, "unreadable": unreadable, "text_columns": text_columns}
    encoded = encode_texts(samples, model, processor, **options)
    return [batch for _, batch in pad_in_batches(list(encoded.values()), model, processor, batch_size)]


def padded_batches(
    samples: list[Any], model: nn.Module, processor: Any = None, *, batch_size: int, max_length: int | None = None
) -> list[tuple[list[int], Batch]]:
    """Batches of all samples, sorted by length, so that a batch holds little padding.

    Args:
        samples: strings, tuples of one string or two, or tokenised dicts; all alike.
        model: the model the batches are for.
        processor: its tokenizer; not needed for tokenised data.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.

    Returns:
        Pairs: the indices of some samples, and their batch (name -> tensor with the batch first, on the CPU).
    """
    return pad_in_batches(_encode(samples, model, processor, max_length), model, processor, batch_size)


def encode_texts(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    max_length: int | None,
    unreadable: str,
    text_columns: Sequence[str | int] | None,
) -> dict[int, dict]:
    """The samples that have tokens, encoded, by row; if none has any, all, for `check_texts` to refuse."""
    return encode_read(_inputs(samples, text_columns, unreadable), model, processor, max_length, unreadable)


def encode_read(
    texts: Mapping[int, Any], model: nn.Module, processor: Any, max_length: int | None, unreadable: str
) -> dict[int, dict]:
    """What `encode_texts` makes of texts, or tokenised samples, that were read already."""
    encoded = dict(zip(texts, _encode(list(texts.values()), model, processor, max_length), strict=True))
    problems = {row: "no tokens" for row, sample in encoded.items() if not any(sample.get("attention_mask", [1]))}
    problems |= {row: "no tokens" for row, sample in encoded.items() if not sample["input_ids"]}
    if len(problems) < len(encoded):
        leave_out(problems, len(encoded), unreadable)
        encoded = {row: sample for row, sample in encoded.items() if row not in problems}
    return encoded


def pad_in_batches(
    encoded: list[dict], model: nn.Module, processor: Any, batch_size: int
) -> list[tuple[list[int], Batch]]:
    """Batches of samples of similar length, each with the samples' indices; arguments as for `padded_batches`."""
    processor = tokenizer_of(processor)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]))
    config = model.config.get_text_config()
    fills = (getattr(each, "pad_token_id", None) for each in (processor, config))
    fill = next((each for each in fills if each is not None), 0)
    length = max_tokens(model) if model.config.model_type in _OF_FULL_LENGTH else None
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [(part, _pad([encoded[index] for index in part], fill, length)) for part in parts]


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


def probe_text(model: nn.Module, tokens: int) -> Batch:
    """One text of `tokens` tokens, on the model's device.

    Raises:
        ValueError: the model takes fewer.
    """
    if tokens > max_tokens(model):
        raise ValueError(f"tokens={tokens} are more than this model takes, {max_tokens(model)}.")
    ids = torch.ones(1, tokens, dtype=torch.long, device=model.device)
    if getattr(model.config, "pad_token_id", None) == 1:  # RoBERTa counts positions by padding
        ids.zero_()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def running_tokens(text: str, processor: Any) -> list[int]:
    """The token ids of a text of any length, with what the tokenizer puts before and after a text.

    Args:
        text: the text.
        processor: the tokenizer, or a processor that holds one.
    """
    return list(working_copy(tokenizer_of(processor))(without_surrogates(text), verbose=False)["input_ids"])


def is_tokenised(sample: Any) -> bool:
    """Whether a sample is token ids already."""
    return isinstance(sample, Mapping) and "input_ids" in sample


def model_inputs(sample: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """The inputs in a sample or batch that the model takes, without targets; and the attention mask, which we need."""
    taken = {name: value for name, value in sample.items() if takes(model, name) or name == "attention_mask"}
    return {name: value for name, value in taken.items() if name not in TARGETS}


def tokenizer_of(processor: Any) -> Any:
    """The tokenizer, which a processor of texts and something else holds."""
    return getattr(processor, "tokenizer", processor)


def _inputs(samples: Mapping[int, Any], text_columns: Sequence[str] | None, unreadable: str) -> dict[int, Any]:
    """Tokenised samples as they are, or the texts of others, by row."""
    if all(is_tokenised(sample) for sample in samples.values()):
        check_unused(text_columns, "the samples are tokenised already")
        return dict(samples)
    return read_texts(samples, text_columns, unreadable)


def _encode(samples: list[Any], model: nn.Module, processor: Any, max_length: int | None) -> list[dict]:
    processor = tokenizer_of(processor)
    if all(map(is_tokenised, samples)):
        limit = max_length or max_tokens(model)
        listed = [_listed(model_inputs(sample, model)) for sample in samples]
        longer = sum(len(sample["input_ids"]) > limit for sample in listed)
        if longer and max_length is None and is_main():
            logger.warning(
                f"{longer} of {len(listed)} samples are longer than the model takes, and cut to {limit} tokens."
            )
        return [{name: value[:limit] for name, value in sample.items()} for sample in listed]
    if processor is None:
        raise ValueError("raw text needs a tokenizer: pass processor=, or tokenised data with 'input_ids'.")
    texts = _sound([(sample,) if isinstance(sample, str) else tuple(sample) for sample in samples])
    limit = max_length or min(processor.model_max_length, max_tokens(model))
    # A tokenizer keeps the truncation of a call, and would save it; one inside a wrapper does so, too.
    encoded = working_copy(processor)(*map(list, zip(*texts, strict=True)), truncation=True, max_length=limit)
    names = [name for name in encoded if takes(model, name) or name == "attention_mask"]
    return [{name: encoded[name][index] for name in names} for index in range(len(texts))]


def _sound(texts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Texts that a tokenizer takes: plain strings, with U+FFFD where half a surrogate pair stood."""
    for text in texts:
        if not all(isinstance(part, str) for part in text) or not 1 <= len(text) <= 2 or len(text) != len(texts[0]):
            raise ValueError(f"a sample must be a string or a pair of strings, all alike, got {text!r:.120}.")
    sound = [tuple(without_surrogates(str(part)) for part in text) for text in texts]
    changed = [row for row, text in enumerate(texts) if text != sound[row]]
    if changed and is_main():
        logger.warning(
            f"{len(changed)} of {len(texts)} texts hold half a surrogate pair, which is no character; it is read as "
            f"U+FFFD. The first: {ascii(texts[changed[0]])[:80]}."
        )
    return sound


def _pad(samples: list[dict], fill: int, length: int | None = None) -> Batch:
    """One batch, padded to the longest sample; or filled up to `length`, with the filling taken for tokens."""
    longest = length or max(len(sample["input_ids"]) for sample in samples)
    for sample in samples:
        if length:
            sample.pop("attention_mask", None)
        else:
            sample.setdefault("attention_mask", [1] * len(sample["input_ids"]))
    fills = {"input_ids": fill}
    return {
        name: torch.tensor([sample[name] + [fills.get(name, 0)] * (longest - len(sample[name])) for sample in samples])
        for name in samples[0]
    }


def _listed(sample: dict[str, Any]) -> dict[str, list]:
    """Plain lists of one sample, without padding, from lists, arrays or tensors."""
    tensors = {name: torch.as_tensor(value) for name, value in sample.items()}
    tensors = {name: value[0] if value.dim() == 2 and len(value) == 1 else value for name, value in tensors.items()}
    if tensors["input_ids"].dim() != 1:
        raise ValueError(f"input_ids of a sample must be whole numbers of shape (tokens,), got {sample!r:.80}.")
    real = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"])).bool()
    if real.any() and all(value.shape == real.shape for value in tensors.values()):
        tensors = {name: value[real] for name, value in tensors.items()}
    return {name: value.tolist() for name, value in tensors.items()}
