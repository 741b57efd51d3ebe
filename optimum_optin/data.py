"""Calibration data: from whatever the user has to batches of model inputs. Images are read in `pixels.py`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from .architectures import stack_inputs
from .groups import Batch, samples_in, token_mask
from .images import (
    check_images,
    check_inputs,
    probe_images,
    takes_images,
    takes_pairs,
    usual_image,
)
from .pixels import image_batches, is_image, pixel_values
from .tokens import token_masks

# Text columns of GLUE and the like, in the order in which a tokenizer wants them.
_TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "context"),
    ("text", "text_pair"),
    ("sentence",),
    ("text",),
)
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
) -> list[Batch]:
    """Batches of model inputs, without labels.

    Samples are drawn with the seed and sorted by length, so that a batch holds little padding.

    Args:
        data: a `datasets.Dataset`, a list of strings, of pairs of strings or of tokenised dicts, the
            output of a tokenizer, or a `DataLoader` whose batches are used as they come. For a model of images: a
            `datasets.Dataset`, a list of what `images.pixel_values` takes, the output of an image processor, an array
            or tensor of images, or a `DataLoader`. For a dual model: a `datasets.Dataset` with columns of both, a list
            of pairs (image, text) or of dicts, the output of its processor, or a `DataLoader`.
        model: the model the batches are for.
        processor: its tokenizer or image processor; not needed for tokenised data and pixel values.
        num_samples: samples to use at most.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.
        unreadable: see `images.pixel_values`.
        seed: seed of the draw. A `DataLoader` that shuffles draws by its own.

    Returns:
        Batches on the CPU; name -> tensor with the batch first.

    Raises:
        ValueError: no data, no text, image or input columns, samples that are all padding or too long, token ids
            outside the vocabulary, images of a size that the model does not take, or no image that can be read.
    """
    if isinstance(data, DataLoader):
        batches = _loaded(data, model, num_samples)
    elif takes_images(model):
        samples = _draw(undecoded(data), num_samples, seed)
        batches = image_batches(samples, model, processor, batch_size, unreadable)
    elif takes_pairs(model):
        samples = _draw(undecoded(data), num_samples, seed)
        pixels = pixel_values(samples, model, processor, unreadable)
        pairs = [
            (each, _text_of(sample, model))
            for each, sample in zip(pixels, samples.values(), strict=True)
            if each is not None
        ]
        pixels, texts = zip(*pairs, strict=True)
        padded = padded_batches(texts, model, processor, batch_size=batch_size, max_length=max_length)
        batches = [{**batch, "pixel_values": torch.stack([pixels[row] for row in rows])} for rows, batch in padded]
    else:
        samples = list(_draw(data, num_samples, seed).values())
        padded = padded_batches(samples, model, processor, batch_size=batch_size, max_length=max_length)
        batches = [batch for _, batch in padded]
    check_batches(batches, model)
    # Out of order of length, so that a progress bar's estimate is fair.
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[index] for index in order.tolist()]


def padded_batches(
    samples: list[Any], model: nn.Module, processor: Any = None, *, batch_size: int, max_length: int | None = None
) -> list[tuple[list[int], Batch]]:
    """Every sample, sorted by length, so that a batch holds little padding.

    Args:
        samples: strings, pairs of strings or tokenised dicts.
        model: the model the batches are for.
        processor: its tokenizer; not needed for tokenised data.
        batch_size: samples per batch.
        max_length: tokens per sample at most; `None` takes the tokenizer's and the model's limit.

    Returns:
        Pairs of the samples' indices and their batch, as `calibration_batches` gives it.
    """
    processor = getattr(processor, "tokenizer", processor)  # of what serves text and images
    encoded = _encode(samples, model, processor, max_length)
    order = sorted(range(len(encoded)), key=lambda index: len(encoded[index]["input_ids"]))
    config = model.config.get_text_config()
    fills = (getattr(each, "pad_token_id", None) for each in (processor, config))
    fill = next((each for each in fills if each is not None), 0)
    length = max_tokens(model) if model.config.model_type in _OF_FULL_LENGTH else None
    parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [(part, _pad([encoded[index] for index in part], fill, length)) for part in parts]


def probe_batch(model: nn.Module, tokens: int) -> Batch:
    """One sample of `tokens` tokens on the model's device, for counting what a forward pass costs.

    For a dual model, a text of so many tokens and an image of the usual size.

    Raises:
        ValueError: the model makes another number of tokens of an image.
    """
    if takes_images(model):
        return probe_images(model, tokens)
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


def undecoded(data: Any) -> Any:
    """A `datasets.Dataset` whose images are opened by us, who can name the file that cannot be; others as they are, and
    one with a transform of the user's own, too.
    """
    features = getattr(data, "features", None) or {}
    if features and getattr(data, "format", {}).get("type") == "custom":  # which decides what an image is
        return data
    for name, feature in features.items():
        if type(feature).__name__ == "Image":
            data = data.with_format(None).cast_column(name, type(feature)(decode=False))
    return data


def text_columns(columns: Sequence[str], strings: Sequence[str]) -> tuple[str, ...]:
    """The columns to feed a tokenizer: a known pair or single, else the only one or two that hold text.

    Args:
        columns: all column names.
        strings: those that hold text.

    Raises:
        ValueError: no such columns; lists those there are.
    """
    for known in _TEXT_COLUMNS:
        if all(name in strings for name in known):
            return known
    if 1 <= len(strings) <= 2:
        return tuple(strings)
    raise ValueError(
        f"cannot tell the text columns among {', '.join(columns) or 'none'}: rename them to 'text' (and 'text_pair'), "
        "or tokenise the data first so that it has 'input_ids'."
    )


def _draw(data: Any, num_samples: int, seed: int) -> dict[int, Any]:
    """The samples by their row in the data, in the order of the draw."""
    if isinstance(data, Mapping):
        check_inputs(data)
    if isinstance(data, Mapping) and "pixel_values" in data and "input_ids" not in data:  # of an image processor
        data = data["pixel_values"]
    if isinstance(data, Mapping) and "input_ids" in data:  # of a tokenizer, or of what serves text and images
        if isinstance(data["input_ids"][0], int):
            data = [data]
        else:
            data = [dict(zip(data, values, strict=True)) for values in zip(*data.values(), strict=True)]
    if isinstance(data, (str, Mapping)):
        kind = "a dict of splits" if isinstance(data, Mapping) else "a single string"
        raise ValueError(f"calibration data must be a sequence of samples, got {kind}: pass one split, or a list.")
    if not hasattr(data, "__getitem__") and not isinstance(data, Iterable):
        raise ValueError(
            f"calibration data must be a Dataset, a list or a DataLoader, got {type(data).__name__}: "
            "pass calibration data, or scores=."
        )
    if not hasattr(data, "__len__") or not hasattr(data, "__getitem__"):
        data = list(islice(data, num_samples))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))[:num_samples]
    if len(order) == 0:
        raise ValueError("calibration data is empty: a few dozen samples are needed.")
    return {index: data[index] for index in order.tolist()}


def _encode(samples: list[Any], model: nn.Module, processor: Any, max_length: int | None) -> list[dict]:
    if all(isinstance(sample, Mapping) and "input_ids" in sample for sample in samples):
        limit = max_length or max_tokens(model)
        return [_listed(_text_inputs(sample, model), limit) for sample in samples]
    texts = _texts(samples)
    if processor is None:
        raise ValueError("raw text needs a tokenizer: pass processor=, or tokenised data with 'input_ids'.")
    limit = max_length or min(processor.model_max_length, max_tokens(model))
    encoded = _copied(processor)(*map(list, zip(*texts, strict=True)), truncation=True, max_length=limit)
    names = _accepted(model)
    return [{name: encoded[name][index] for name in encoded if name in names} for index in range(len(texts))]


def _copied(processor: Any) -> Any:
    """A tokenizer to work with: one of transformers keeps the truncation of a call, and would save it."""
    return copy.deepcopy(processor) if isinstance(processor, PreTrainedTokenizerBase) else processor


def _texts(samples: list[Any]) -> list[tuple[str, ...]]:
    """One string, or a pair, per sample."""
    first = samples[0]
    if any(map(is_image, first.values() if isinstance(first, Mapping) else _sequence(first))):
        raise ValueError("the calibration data hold images, but this is a model of text: give text.")
    if all(isinstance(sample, Mapping) for sample in samples):
        columns = list(samples[0])
        strings = [name for name in columns if any(isinstance(sample.get(name), str) for sample in samples)]
        names = text_columns(columns, strings)
        texts = [tuple(sample.get(name) for name in names) for sample in samples]
    else:
        texts = [(sample,) if isinstance(sample, str) else tuple(_sequence(sample)) for sample in samples]
    for sample, text in zip(samples, texts, strict=True):
        if not all(isinstance(part, str) for part in text) or not 1 <= len(text) <= 2 or len(text) != len(texts[0]):
            raise ValueError(
                f"a calibration sample must be a string, a pair of strings or a dict, all alike, got {sample!r:.120}: "
                "drop or mend such samples."
            )
    return texts


def _text_of(sample: Any, model: nn.Module) -> Any:
    """The text in a pair of an image and a text, as `padded_batches` takes it."""
    if isinstance(sample, Mapping) and "input_ids" in sample:
        return {name: value for name, value in sample.items() if name != "pixel_values"}
    if isinstance(sample, Mapping):
        text = {name: value for name, value in sample.items() if isinstance(value, str)}
    else:
        text = _sequence(sample)[1:]
    if not text:
        raise ValueError(
            f"{model.config.model_type!r} is a model of pairs, but the calibration data hold an image alone, "
            f"{sample!r:.80}: give pairs (image, text), dicts with both, or prune its vision model."
        )
    return text


def _sequence(sample: Any) -> Sequence[Any]:
    return sample if isinstance(sample, (tuple, list)) else (sample,)


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
    names = _accepted(model) - set(_TARGETS)
    return {name: value for name, value in sample.items() if name in names}


def _model_inputs(sample: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    names = _accepted(model)
    inputs = {name: value for name, value in sample.items() if name in names and name not in _TARGETS}
    if missing := set(stack_inputs(model).values()) - set(inputs):
        raise ValueError(
            f"calibration data lacks the model's inputs: it has {', '.join(map(str, sample)) or 'nothing'}, "
            f"the model needs {' and '.join(sorted(map(repr, missing)))}."
        )
    return inputs


def _accepted(model: nn.Module) -> set[str]:
    return set(inspect.signature(model.forward).parameters)


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
