"""Perplexity of running text, block by block, with its standard error."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..config_values import check_integer
from ..figures import Measurement
from ..inputs.encoding import max_tokens, running_tokens
from ..models.identity import device_of
from ..running.batch import Batch, token_mask
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen
from .causal_models import check_causal, check_vocabulary, most_at_once, surprises
from .running_text import RunningText, read_running_text

_LONGEST = 2048  # the usual length where the model takes more


class Perplexity:
    """How well a causal language model predicts a text: the exponential of the mean of -log p over its tokens.

    The whole text becomes one row of tokens. Blocks of `block_size` tokens begin at every `stride`-th token. In each of
    them the model predicts all tokens but those that an earlier block has had, and but the first of the text; of the
    blocks' tokens so each counts once if `stride` is smaller than `block_size`. With blocks that do not overlap, the
    first token of each is not predicted. What is left at the end and is shorter than a block does not count.

    Args:
        block_size: tokens of a block; `None` takes the model's limit, but 2,048 at most.
        stride: tokens between the starts of two blocks; `None` takes `block_size`. With less, every prediction has
            `block_size - stride` tokens before it at least, and the measurement takes longer.
    """

    name = "perplexity"

    def __init__(self, block_size: int | None = None, stride: int | None = None):
        if block_size is not None:
            check_integer("block_size", block_size, 2)
        if stride is not None:
            check_integer("stride", stride, 1)
            if block_size is not None and stride > block_size:
                raise ValueError(f"stride={stride} leaves out text between blocks of {block_size} tokens: take less.")
        self._block_size, self._stride = block_size, stride

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> RunningText:
        """The text; see `read_running_text`."""
        return read_running_text(self.name, data=data, data_dir=data_dir, split=split, max_samples=max_samples)

    def check(self, model: nn.Module, processor: Any, samples: RunningText) -> None:
        """Raise if the model cannot be measured on this text.

        Raises:
            ValueError: no language model that predicts the next token, no tokenizer, blocks that are longer than the
                model takes, or a text that is shorter than a block.
        """
        self._blocks(model, processor, samples)

    def check_each(self, model: nn.Module, processor: Any, samples: RunningText) -> None:
        """All was checked with the model."""

    def measure(self, model: nn.Module, processor: Any, samples: RunningText, batch_size: int) -> Measurement:
        """The perplexity, on as many blocks at once as `batch_size` and memory allow.

        Raises:
            ValueError: see `check`; or logits that are not finite.
        """
        check_integer("batch_size", batch_size, 1)
        blocks, stride = self._blocks(model, processor, samples)
        length = blocks.shape[1]
        at_once = min(batch_size, most_at_once(model, length))
        sums = []
        with torch.inference_mode(), frozen(model):
            for part in tqdm(blocks.split(at_once), desc=self.name, unit="batch"):
                ids = send_to_device(part, device_of(model))
                logits = logits_of(run_model(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
                sums += [surprises(each, tokens).cpu() for each, tokens in zip(logits, ids, strict=True)]
        losses = torch.stack(sums)  # (blocks, length - 1), float32
        if not losses.isfinite().all():
            raise ValueError(f"the model's outputs on {samples.source} are not finite: its weights are damaged.")
        new = torch.ones_like(losses, dtype=torch.bool)
        new[1:, : max(0, length - stride - 1)] = False  # what an earlier block has had
        how = f"blocks of {length} tokens" + (f", one every {stride}" if stride < length else "")
        described = {"samples": len(blocks), "protocol": how}
        return Measurement({self.name: perplexity((losses.double() * new).sum(1), new.sum(1))}, described=described)

    def show(self, samples: RunningText, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}

    def _blocks(self, model: nn.Module, processor: Any, samples: RunningText) -> tuple[Tensor, int]:
        """The text's blocks, shape (blocks, block_size), and the stride."""
        check_causal(model, processor, self.name)
        kind, limit = type(model).__name__, max_tokens(model)
        size = self._block_size or min(limit, _LONGEST)
        stride = self._stride or size
        if size > limit:
            raise ValueError(f"block_size={size} is more than the {limit} tokens that this {kind} takes.")
        if stride > size:
            raise ValueError(f"stride={stride} leaves out text between blocks of {size} tokens: take less.")
        tokens = running_tokens(samples.text, processor)
        if len(tokens) < size:
            raise ValueError(
                f"{samples.source} has {len(tokens)} tokens, fewer than a block of {size}: give more text, or a "
                "smaller block_size."
            )
        check_vocabulary(tokens, model)
        return torch.tensor(tokens).unfold(0, size, stride)[: samples.most], stride


@torch.inference_mode()
def held_out_perplexity(model: nn.Module, batches: Sequence[Batch]) -> float:
    """The perplexity of samples as they are, each by itself, padding excluded.

    Args:
        model: a causal language model.
        batches: tokenised samples, on its device.
    """
    total, count = 0.0, 0
    with frozen(model):
        for batch in batches:
            logits = logits_of(run_model(model, batch))
            for each, tokens, real in zip(logits, batch["input_ids"], token_mask(batch), strict=True):
                losses = surprises(each[real], tokens[real])
                total, count = total + float(losses.double().sum()), count + len(losses)
    return math.exp(total / count)


def perplexity(sums: Tensor, counts: Tensor) -> tuple[float, float | None]:
    """The perplexity and its standard error, by the delta method on the blocks' own sums.

    Args:
        sums: -log p summed over the tokens of each block, shape (blocks,), float64.
        counts: how many tokens each sum has, shape (blocks,).

    Returns:
        exp(sum / count), and its error; `None` for a single block.
    """
    mean = float(sums.sum() / counts.sum())
    value, blocks = math.exp(mean), len(sums)
    if blocks < 2:
        return value, None
    off = sums - mean * counts
    return value, value * math.sqrt(blocks / (blocks - 1) * float(off.square().sum())) / float(counts.sum())
