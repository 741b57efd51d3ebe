"""Decoder inputs: what a decoder reads beside its encoder, from the tokens that it is to write, or writes by itself."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import logging

from ..models.identity import device_of
from ..running.batch import Batch, samples_in, token_mask
from ..running.forward import takes
from ..running.freezing import frozen
from ..running.processes import first_of_all, is_main
from ..stages.progress import progress

logger = logging.get_logger(__name__)

IDS, MASK, TARGETS = "decoder_input_ids", "decoder_attention_mask", "labels"
_IGNORED = -100  # a label that is none, as everywhere in transformers
_MOST = 64  # tokens that a model writes by itself
_STARTS = 4  # tokens that a decoder starts with at most: Whisper's are told language and task


def writes(model: nn.Module) -> bool:
    """Whether a model is an encoder with a decoder that writes text."""
    config = getattr(model, "config", None)
    paired = getattr(config, "is_encoder_decoder", False) is True
    return paired and isinstance(model, GenerationMixin) and model.can_generate()


def written_tokens(batch: Batch) -> Tensor:
    """Which tokens of a decoder are real; shape (batch, tokens), boolean."""
    mask = batch.get(MASK)
    return torch.ones_like(batch[IDS], dtype=torch.bool) if mask is None else mask.bool()


def most_written(model: nn.Module) -> int:
    """How many tokens the decoder takes."""
    config = model.config.get_text_config(decoder=True)
    names = ("max_target_positions", "max_position_embeddings")
    return next((value for name in names if (value := getattr(config, name, None))), 512)


def most_new(model: nn.Module) -> int:
    """How many tokens the decoder can write after those that it starts with."""
    return max(1, most_written(model) - _STARTS)


def with_decoder_inputs(batches: Sequence[Batch], model: nn.Module, max_length: int | None = None) -> list[Batch]:
    """Batches with decoder inputs: those that are there, else those that make the model write the labels, else its own.

    A model that writes text so reads what it writes by itself, taking the likeliest token each time, until it ends or
    has written 64 tokens. A decoder that writes none (of a classifier) reads what its encoder does, one place later, as
    transformers' classes do it.

    Args:
        batches: the other inputs, on the CPU, and perhaps `labels`, with -100 or the padding token after the last.
        model: an encoder with a decoder.
        max_length: tokens that the model writes at most, if that is less.

    Raises:
        ValueError: no token is known that the decoder starts with, or the model cannot write after these inputs.
    """
    given = [IDS in batch or TARGETS in batch for batch in batches]
    if any(given) and not all(given):
        raise ValueError(f"some calibration batches have {IDS} or {TARGETS} and others do not: give them to all.")
    if all(given):
        return [_masked(batch, model) if IDS in batch else _shifted(batch, model) for batch in batches]
    if not writes(model):
        return [_as_read(batch, model) for batch in batches]
    decoder_start(model)
    most = min(_MOST, max_length or _MOST, most_new(model))
    if is_main():
        logger.warning(
            f"the calibration data do not say what the {type(model).__name__} is to write: it goes by what it writes "
            f"itself, {most} tokens at most. Pairs of texts, or {TARGETS}, say it."
        )
    found = [batch | written_by(model, batch, most) for batch in progress(batches, "texts to go by", "batch")]
    return first_of_all(found)  # processes may round differently, and would write different texts


def decoder_start(model: nn.Module) -> int:
    """The token that the decoder starts with.

    Raises:
        ValueError: neither the config nor the generation config names one.
    """
    configs = (getattr(model, "generation_config", None), model.config)
    names = ("decoder_start_token_id", "bos_token_id")
    found = (getattr(config, name, None) for name in names for config in configs)
    start = next((each for each in found if each is not None), None)
    if start is None:
        raise ValueError(
            f"this {type(model).__name__} does not say which token its decoder starts with: set "
            "model.config.decoder_start_token_id (T5 starts with its padding token, 0; BART with its end, 2), or give "
            f"{IDS} with the data."
        )
    return start[0] if isinstance(start, (list, tuple)) else start


@torch.no_grad()
def written_by(model: nn.Module, batch: Batch, most: int) -> dict[str, Tensor]:
    """Decoder inputs that a model makes for itself, by what it writes greedily; on the batch's device.

    Args:
        model: an encoder with a decoder that writes text.
        batch: the encoder's inputs.
        most: tokens to write at most; what ends a text is written, and not read.
    """
    device = next(iter(batch.values())).device
    sequences, ends = greedily(model, batch, most)
    ids = sequences[:, :-1]
    mask = ~ends[:, :-1].cummax(1).values
    length = int(mask.sum(1).max())
    return {IDS: ids[:, :length].to(device), MASK: mask[:, :length].long().to(device)}


@torch.no_grad()
def greedily(model: nn.Module, batch: Batch, most: int) -> tuple[Tensor, Tensor]:
    """What a model writes, taking the likeliest token each time.

    Args:
        model: an encoder with a decoder that writes text.
        batch: the encoder's inputs.
        most: tokens to write at most.

    Returns:
        Token ids with those that the decoder starts with, and where a token ends a text: shapes (batch, tokens).

    Raises:
        ValueError: the model does not generate from these inputs.
    """
    inputs = {name: value for name, value in batch.items() if name not in (IDS, MASK, TARGETS) and takes(model, name)}
    inputs = send_to_device(inputs, device_of(model))
    with frozen(model):  # which takes the settings back
        model.generation_config = settings = _plain(model.generation_config, most)
        try:
            sequences = model.generate(**inputs, return_dict_in_generate=True).sequences
        except (TypeError, ValueError, IndexError) as error:  # Whisper's, if all that it writes is padding
            raise ValueError(
                f"{type(model).__name__}.generate does not run on {' and '.join(inputs)} ({error}): give {TARGETS} or "
                f"{IDS} with the data."
            ) from error
    ends = torch.zeros_like(sequences, dtype=torch.bool)
    for token in _listed(settings.eos_token_id):
        ends |= sequences == token
    ends[:, 0] = False  # BART starts with what ends a text
    return sequences, ends


def padded_targets(targets: Sequence[Mapping[str, list[int]]], model: nn.Module) -> dict[str, Tensor]:
    """Labels or decoder inputs of some samples, filled up at the right to the longest."""
    fills = {TARGETS: _IGNORED, IDS: _padding(model) or 0, MASK: 0}
    return {
        name: torch.tensor([row[name] + [fills[name]] * (_longest(targets, name) - len(row[name])) for row in targets])
        for name in targets[0]
    }


def check_decoder_inputs(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take the decoder inputs of these batches.

    Raises:
        ValueError: says what is wrong with them.
    """
    vocabulary, most = model.config.get_text_config(decoder=True).vocab_size, most_written(model)
    for number, batch in enumerate(batches):
        ids, mask = batch[IDS], written_tokens(batch)
        if ids.dim() != 2 or ids.is_floating_point() or len(ids) != samples_in(batch) or mask.shape != ids.shape:
            raise ValueError(
                f"{IDS} of calibration batch {number} must be whole numbers of shape (batch, tokens), with a mask of "
                f"that shape, got {tuple(ids.shape)} and {tuple(mask.shape)} for {samples_in(batch)} samples."
            )
        if ids.numel() == 0 or bool((mask.sum(-1) == 0).any()):
            raise ValueError(f"calibration batch {number} holds a sample for which the decoder reads nothing: drop it.")
        if not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"the decoder's token ids run from {int(ids.min())} to {int(ids.max())}, its vocabulary from 0 to "
                f"{vocabulary - 1}: the labels are of another tokenizer, or no tokens."
            )
        if ids.shape[1] > most:
            raise ValueError(f"the decoder is to read {ids.shape[1]} tokens, and takes {most}: cut the labels first.")


def probe_decoder(model: nn.Module, tokens: int) -> Batch:
    """Decoder inputs of `tokens` tokens, or as many as the decoder takes, on the model's device."""
    ids = torch.ones(1, min(tokens, most_written(model)), dtype=torch.long, device=model.device)
    return {IDS: ids, MASK: torch.ones_like(ids)}


def _masked(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """A batch with the decoder inputs that it has; padding at their end is none of them."""
    ids = batch[IDS]
    mask = batch.get(MASK)
    if mask is None:
        mask = _before_padding(ids != (-1 if (pad := _padding(model)) is None else pad)).long()
        mask[:, :1] = 1  # T5 starts with its padding token
    return {name: value for name, value in batch.items() if name != TARGETS} | {MASK: mask}


def _shifted(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """A batch with the decoder inputs that make the model write its labels, which are taken out."""
    labels = batch[TARGETS]
    if labels.dim() != 2 or labels.is_floating_point():
        raise ValueError(
            f"{TARGETS} of {type(model).__name__} must be the token ids that it is to write, (batch, tokens), got "
            f"{labels.dtype} of shape {tuple(labels.shape)}."
        )
    start, pad = decoder_start(model), _padding(model)
    if len(labels) and labels.shape[1] > 1 and pad != start and bool((labels[:, 0] == start).all()):
        labels = labels[:, 1:]  # as Whisper's tokenizer makes them
    said = labels != _IGNORED
    if pad is not None:
        said &= labels != pad
    mask = _before_padding(said).long()
    rest = {name: value for name, value in batch.items() if name != TARGETS}
    return rest | {IDS: _moved_by_class(labels, model, start, pad), MASK: mask}


def _as_read(batch: Batch, model: nn.Module) -> dict[str, Tensor]:
    """A batch whose decoder reads what its encoder does, one place later."""
    if "input_ids" not in batch:
        raise ValueError(f"{type(model).__name__} writes no text: give {IDS} with the data.")
    mask = token_mask(batch)
    ids = _moved(batch["input_ids"], decoder_start(model), _padding(model))
    return {**batch, IDS: ids, MASK: mask.long()}


def _moved_by_class(labels: Tensor, model: nn.Module, start: int, pad: int | None) -> Tensor:
    """Labels one place later: the model's class knows how, as mBART begins with the language that ends the labels."""
    prepare = getattr(model, "prepare_decoder_input_ids_from_labels", None)
    if prepare is not None and pad is not None and getattr(model.config, "decoder_start_token_id", None) is not None:
        return prepare(labels=labels)
    return _moved(labels, start, pad)


def _moved(ids: Tensor, start: int, pad: int | None) -> Tensor:
    """Token ids one place later, after the token that starts; labels that are none become padding."""
    moved = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
    return moved.masked_fill(moved == _IGNORED, pad or 0)


def _before_padding(said: Tensor) -> Tensor:
    """Which places come before the padding at the end, boolean; `said` are those that hold no padding token."""
    return said.flip(1).cummax(1).values.flip(1)


def _plain(settings: GenerationConfig, most: int) -> GenerationConfig:
    """Settings of generation by which the likeliest token is taken each time; what the model must say stays."""
    plain = copy.deepcopy(settings)
    plain.update(do_sample=False, num_beams=1, num_return_sequences=1, max_new_tokens=most, max_length=None)
    plain.update(temperature=None, top_p=None, top_k=None, early_stopping=False, length_penalty=1.0, num_beam_groups=1)
    plain.forced_eos_token_id = None  # said where the user's limit is, which is another
    if getattr(plain, "min_length", None):
        plain.min_length = min(plain.min_length, most)
    return plain


def _padding(model: nn.Module) -> int | None:
    configs = (model.config, model.config.get_text_config(decoder=True))
    return next((pad for config in configs if (pad := getattr(config, "pad_token_id", None)) is not None), None)


def _listed(tokens: Any) -> list[int]:
    if tokens is None:
        return []
    return [int(tokens)] if not isinstance(tokens, (list, tuple)) else list(tokens)


def _longest(targets: Sequence[Mapping[str, list[int]]], name: str) -> int:
    return max(len(row[name]) for row in targets)
