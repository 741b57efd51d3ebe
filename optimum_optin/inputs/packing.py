"""Packing: texts for a model that predicts the next token, one after the other, as blocks of one size."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from ..discovery.next_tokens import predicts_next_token
from ..reading.columns import check_unused
from ..reading.samples import is_stream, rows_from
from ..running.batch import Batch
from ..running.processes import is_main
from .encoding import is_tokenised, max_tokens, running_tokens
from .texts import columns_of, is_composed, read_texts

logger = logging.get_logger(__name__)

_USUAL = 512  # tokens of a block, if the user names no number
_FEWEST = 16  # blocks that are worth packing, if the user did not ask for it
_MORE = 8  # times as much text is read as the blocks take, so that they are a draw
_CHARACTERS = 4  # of a token, about
_ROWS = 64  # of a stream for each block, at most
_BETWEEN = "\n\n"  # as WikiText is read from the Hub everywhere


def joined(texts: Iterable[str]) -> str:
    """Texts as one, with an empty line between two."""
    return _BETWEEN.join(texts)


def begun(data: Any, model: nn.Module, num_samples: int) -> Any:
    """A list of what comes first in a stream that is to be packed; other data as they are."""
    if is_stream(data) and predicts_next_token(model):
        return list(islice(data, _ROWS * num_samples))
    return data


def packed_batches(
    data: Any,
    model: nn.Module,
    processor: Any,
    *,
    num_samples: int,
    batch_size: int,
    block_size: int | None = None,
    max_length: int | None = None,
    unreadable: str = "skip",
    seed: int = 0,
    text_columns: Sequence[str | int] | None = None,
) -> list[Batch] | None:
    """Blocks of running text as batches, without padding; `None` where samples are to stay apart.

    Only texts of a model that predicts the next token are packed, and without `block_size` only where they are not
    tokenised and make as many blocks as there are texts, or 16. From a drawn row on, rows are read in their order until
    there is eight times as much text as the blocks take, or all; it is cut into blocks, of which some are drawn.

    Args:
        data: what `samples.draw` takes, but a stream; samples are texts or tokenised.
        model: the model the batches are for.
        processor: its tokenizer; not needed for tokenised data.
        num_samples: blocks at most.
        batch_size: blocks per batch.
        block_size: tokens of a block; `None` takes `max_length`, or else 512 or what the model takes at most.
        max_length: see `block_size`.
        unreadable: see `texts.read_texts`. Empty texts are no samples here, and are passed over.
        seed: seed of the draw.
        text_columns: see `texts.read_texts`.

    Raises:
        ValueError: `block_size` is given and the model predicts no next token or takes fewer, the data have too few
            tokens for a block, or `max_length` says something else.
    """
    if not predicts_next_token(model):
        if block_size is not None:
            raise ValueError(
                f"block_size={block_size} packs texts for models that predict the next token, and "
                f"{type(model).__name__} does not: leave it out; max_length= cuts samples."
            )
        return None
    size = _size(model, block_size, max_length)
    rows = _enough(rows_from(data, seed), _MORE * num_samples * size * _CHARACTERS)
    tokenised = all(map(is_tokenised, rows.values()))
    if block_size is None and (not rows or tokenised or processor is None):
        return None
    if tokenised:
        check_unused(text_columns, "the samples are tokenised already")
        tokens = [token for sample in rows.values() for token in _real_tokens(sample)]
    else:
        texts = read_texts(rows, text_columns, unreadable)
        if processor is None:
            raise ValueError("raw text needs a tokenizer: pass processor=, or tokenised data with 'input_ids'.")
        tokens = running_tokens(joined(map(joined, texts.values())), processor)
    count = len(tokens) // size
    if block_size is None and count < min(_FEWEST, num_samples, len(rows)):
        return None
    if not count:
        raise ValueError(
            f"the calibration data have {len(tokens)} tokens, fewer than a block of {size}: give more text, or a "
            "smaller block_size."
        )
    if count < num_samples and is_main():
        logger.warning(
            f"the calibration data fill {count} blocks of {size} tokens, fewer than num_samples={num_samples}."
        )
    drawn = torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:num_samples]
    blocks = torch.tensor(tokens).unfold(0, size, size)[drawn]
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in blocks.split(batch_size)]


def _size(model: nn.Module, block_size: int | None, max_length: int | None) -> int:
    limit = max_tokens(model)
    if block_size is None:
        return min(max_length or _USUAL, limit)
    if max_length not in (None, block_size):
        raise ValueError(f"block_size={block_size} and max_length={max_length} are the same here: give one of them.")
    if block_size > limit:
        raise ValueError(f"block_size={block_size} is more than the {limit} tokens that the model takes.")
    return block_size


def _enough(rows: Iterable[tuple[int, Any]], characters: int) -> dict[int, Any]:
    """Rows that are not empty, until there are so many characters; a token id counts as many as a token has."""
    found: dict[int, Any] = {}
    for row, sample in rows:
        length = _length(sample)
        if length is None:
            continue
        found[row] = sample
        characters -= length
        if characters <= 0:
            break
    return found


def _length(sample: Any) -> int | None:
    """The characters of a sample; `None` of one whose texts are all empty."""
    if is_tokenised(sample):
        return _CHARACTERS * len(_real_tokens(sample))
    values = [sample] if isinstance(sample, str) or not is_composed(sample) else list(columns_of(sample).values())
    strings = [value for value in values if isinstance(value, str)]
    return None if strings and not any(map(str.strip, strings)) else sum(map(len, strings))


def _real_tokens(sample: Mapping[str, Any]) -> list[int]:
    """The token ids of a tokenised sample, without padding."""
    ids = torch.as_tensor(sample["input_ids"]).flatten()
    mask = sample.get("attention_mask")
    real: Tensor = torch.ones_like(ids) if mask is None else torch.as_tensor(mask).flatten()
    return ids[real.bool()].tolist()
