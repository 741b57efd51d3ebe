"""Calibration data: from whatever the user has to batches of model inputs.

Samples are drawn in `samples.py`, texts read in `texts.py` and images in `images.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers.utils import logging

from ..architectures.find import stack_inputs
from ..reading.columns import named
from ..reading.plain_text import without_surrogates
from ..running.batch import Batch, samples_in
from ..running.copies import working_copy
from ..running.forward import takes
from ..running.processes import is_main
from .checks import check_batches, max_tokens
from .images import image_batches, image_column, pixel_values
from .samples import draw
from .texts import leave_out, read_texts
from .vision import check_inputs, takes_images, takes_pairs

logger = logging.get_logger(__name__)


# SigLIP's text tower reads the last token, of samples that are filled up to its full length without a mask.
_OF_FULL_LENGTH = ("siglip", "siglip_text_model")


_TARGETS = ("label", "labels", "label_ids", "start_positions", "end_positions", "next_sentence_label")


def calibration_batches(
    data: Any,
    model: nn.Module,
    processor: Any = None,
    *,
    num_samples: int = 512,
    batch_size: int = 8,
    max_length: int | None = None,
    unreadable: str = "skip",
    seed: int = 0,
    text_columns: Sequence[str | int] | None = None,
) -> list[Batch]:
    """Batches of model inputs, without labels.

    Samples are drawn with the seed and sorted by length, so that a batch holds little padding.

    Args:
        data: a `DataLoader`, whose batches are used as they come, or what `samples.draw` takes, of strings, pairs of
            strings, dicts with text or tokenised dicts; or the output of a tokenizer. For a model of images, of what
            `images.pixel_values` takes, or the output of an image processor, an array or tensor of images. For a dual
            model, of pairs (image, text) or of dicts with both, or the output of its processor.
        model: the model the batches are for.
        processor: its tokenizer or image processor; not needed for tokenised data and pixel values.
        num_samples: samples to use at most.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.
        unreadable: what to do about samples that cannot be read; see `images.pixel_values` and `texts.read_texts`. No
            other ones are drawn for them.
        seed: seed of the draw. A `DataLoader` that shuffles draws by its own.
        text_columns: one or two columns that hold the text (places, of tuples); see `texts.read_texts`.

    Returns:
        Batches on the CPU; name -> tensor with the batch first.

    Raises:
        ValueError: no data, no text, image or input columns, or several; samples that are all padding or too long,
            token ids outside the vocabulary, images of a size that the model does not take, or no sample that can be
            read.
    """
    if isinstance(data, DataLoader):
        _check_unused(text_columns, "a DataLoader's batches are taken as they come")
        batches = _loaded(data, model, num_samples)
    elif takes_images(model):
        _check_unused(text_columns, f"{model.config.model_type!r} is a model of images")
        batches = image_batches(draw(data, num_samples, seed), model, processor, batch_size, unreadable)
    elif takes_pairs(model):
        samples = draw(data, num_samples, seed)
        pixels = dict(zip(samples, pixel_values(samples, model, processor, unreadable), strict=True))
        readable = {row: sample for row, sample in samples.items() if pixels[row] is not None}
        texts = _inputs(_without_images(readable, model), text_columns, unreadable)
        encoded = _with_tokens(texts, model, processor, max_length, unreadable)
        kept = [pixels[row] for row in encoded]
        padded = _padded(list(encoded.values()), model, processor, batch_size)
        batches = [{**batch, "pixel_values": torch.stack([kept[index] for index in part])} for part, batch in padded]
    else:
        texts = _inputs(draw(data, num_samples, seed), text_columns, unreadable)
        encoded = _with_tokens(texts, model, processor, max_length, unreadable)
        batches = [batch for _, batch in _padded(list(encoded.values()), model, processor, batch_size)]
    check_batches(batches, model)
    # Out of order of length, so that a progress bar's estimate is fair.
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[index] for index in order.tolist()]


def padded_batches(
    samples: list[Any], model: nn.Module, processor: Any = None, *, batch_size: int, max_length: int | None = None
) -> list[tuple[list[int], Batch]]:
    """Every sample, sorted by length, so that a batch holds little padding.

    Args:
        samples: strings, tuples of one string or two, or tokenised dicts; all alike.
        model: the model the batches are for.
        processor: its tokenizer; not needed for tokenised data.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.

    Returns:
        Pairs of the samples' indices and their batch, as `calibration_batches` gives it.
    """
    return _padded(_encode(samples, model, processor, max_length), model, processor, batch_size)


def _padded(encoded: list[dict], model: nn.Module, processor: Any, batch_size: int) -> list[tuple[list[int], Batch]]:
    processor = _tokenizer(processor)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]))
    config = model.config.get_text_config()
    fills = (getattr(each, "pad_token_id", None) for each in (processor, config))
    fill = next((each for each in fills if each is not None), 0)
    length = max_tokens(model) if model.config.model_type in _OF_FULL_LENGTH else None
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [(part, _pad([encoded[index] for index in part], fill, length)) for part in parts]


def _check_unused(text_columns: Sequence[str] | None, cause: str) -> None:
    if text_columns is not None:
        raise ValueError(f"text_columns={named(text_columns)!r} does not apply: {cause}.")


def _inputs(samples: Mapping[int, Any], text_columns: Sequence[str] | None, unreadable: str) -> dict[int, Any]:
    """Tokenised samples as they are, and of others the text, by row."""
    if all(_is_tokenised(sample) for sample in samples.values()):
        _check_unused(text_columns, "the samples are tokenised already")
        return dict(samples)
    return read_texts(samples, text_columns, unreadable)


def _is_tokenised(sample: Any) -> bool:
    return isinstance(sample, Mapping) and "input_ids" in sample


def _with_tokens(
    samples: Mapping[int, Any], model: nn.Module, processor: Any, max_length: int | None, unreadable: str
) -> dict[int, dict]:
    """Samples as token ids, by row, without those that have none; where none has any, all, for `check_texts`."""
    encoded = dict(zip(samples, _encode(list(samples.values()), model, processor, max_length), strict=True))
    problems = {row: "no tokens" for row, sample in encoded.items() if not any(sample.get("attention_mask", [1]))}
    problems |= {row: "no tokens" for row, sample in encoded.items() if not sample["input_ids"]}
    if len(problems) < len(encoded):
        leave_out(problems, len(encoded), unreadable)
        encoded = {row: sample for row, sample in encoded.items() if row not in problems}
    return encoded


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)  # of what serves text and images


def _encode(samples: list[Any], model: nn.Module, processor: Any, max_length: int | None) -> list[dict]:
    processor = _tokenizer(processor)
    if all(map(_is_tokenised, samples)):
        limit = max_length or max_tokens(model)
        return [_listed(_text_inputs(sample, model), limit) for sample in samples]
    if processor is None:
        raise ValueError("raw text needs a tokenizer: pass processor=, or tokenised data with 'input_ids'.")
    texts = _sound([(sample,) if isinstance(sample, str) else tuple(sample) for sample in samples])
    limit = max_length or min(processor.model_max_length, max_tokens(model))
    # One of transformers keeps the truncation of a call, and would save it, also from within somebody's wrapper.
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


def _without_images(samples: Mapping[int, Any], model: nn.Module) -> dict[int, Any]:
    """What there is beside the image in samples of pairs."""
    rest = {row: _beside(sample, model) for row, sample in samples.items()}
    if not any(rest.values()):
        raise ValueError(
            f"{model.config.model_type!r} is a model of pairs, but the calibration data hold an image alone, "
            f"{next(iter(samples.values()))!r:.80}: give pairs (image, text), dicts with both, or prune its vision "
            "model."
        )
    return rest


def _beside(sample: Any, model: nn.Module) -> Any:
    if _is_tokenised(sample):
        return {name: value for name, value in sample.items() if name != "pixel_values"}
    if isinstance(sample, Mapping):
        image = image_column(sample, model)
        return {name: value for name, value in sample.items() if name != image and isinstance(value, (str, type(None)))}
    return sample[1:] if isinstance(sample, (tuple, list)) else ()


def _pad(samples: list[dict], fill: int, length: int | None = None) -> Batch:
    """One batch, of the longest sample's length; or of this length, with the filling for tokens."""
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


def _loaded(loader: DataLoader, model: nn.Module, num_samples: int) -> list[Batch]:
    batches: list[Batch] = []
    for batch in loader:
        if not isinstance(batch, Mapping):
            raise ValueError(
                f"a DataLoader must give dicts of tensors, got {type(batch).__name__}: set its collate_fn."
            )
        check_inputs(batch)
        inputs = _model_inputs(batch, model)
        for name, value in inputs.items():
            if not isinstance(value, Tensor):
                raise ValueError(
                    f"a DataLoader must give dicts of tensors, {name} is {type(value).__name__}: pad them."
                )
        inputs = {name: value[:num_samples] for name, value in inputs.items()}
        if "pixel_values" in inputs and inputs["pixel_values"].is_floating_point():
            inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        batches.append(inputs)
        num_samples -= samples_in(inputs)
        if num_samples <= 0:
            break
    return batches


def _text_inputs(sample: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in sample.items() if _is_input(name, model)}


def _model_inputs(sample: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    inputs = {name: value for name, value in sample.items() if _is_input(name, model)}
    if missing := set(stack_inputs(model).values()) - set(inputs):
        raise ValueError(
            f"calibration data lacks the model's inputs: it has {', '.join(map(str, sample)) or 'nothing'}, "
            f"the model needs {' and '.join(sorted(map(repr, missing)))}."
        )
    return inputs


def _is_input(name: str, model: nn.Module) -> bool:
    # Which tokens are real, we need to know ourselves.
    return name not in _TARGETS and (takes(model, name) or name == "attention_mask")


def _listed(sample: dict[str, Any], limit: int) -> dict[str, list]:
    """Plain lists of one sample, without padding and cut to the limit, from lists, arrays or tensors."""
    tensors = {name: torch.as_tensor(value) for name, value in sample.items()}
    tensors = {name: value[0] if value.dim() == 2 and len(value) == 1 else value for name, value in tensors.items()}
    if tensors["input_ids"].dim() != 1:
        raise ValueError(f"input_ids of a sample must be whole numbers of shape (tokens,), got {sample!r:.80}.")
    real = tensors.get("attention_mask", torch.ones_like(tensors["input_ids"])).bool()
    if real.any() and all(value.shape == real.shape for value in tensors.values()):
        tensors = {name: value[real] for name, value in tensors.items()}
    return {name: value[:limit].tolist() for name, value in tensors.items()}
