"""Decoding: how long a model takes to read prompts, and then to write each token."""

from __future__ import annotations

import time

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin, StoppingCriteria

from ..discovery.next_tokens import predicts_next_token
from ..inputs.decoder_inputs import decoder_start, most_new, writes
from ..inputs.encoding import max_tokens
from ..models.identity import main_input_of
from ..running.batch import Batch


def decodes(model: nn.Module) -> bool:
    """Whether a model writes text after texts, so that its decoding can be timed."""
    if not isinstance(model, GenerationMixin) or main_input_of(model) != "input_ids":
        return False
    return writes(model) or predicts_next_token(model)


def check_room(model: nn.Module, tokens: int, new: int) -> None:
    """Raise if a model cannot write so many tokens after so many.

    Raises:
        ValueError: says how many it takes.
    """
    room = most_new(model) if writes(model) else max_tokens(model) - tokens
    if new > room:
        raise ValueError(
            f"new_tokens={new} must be at most {room}, what the model can write after prompts of {tokens} tokens."
        )


class _Clock(StoppingCriteria):
    """Notes when each token is written, and stops nothing."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: Tensor, scores: Tensor, **options: object) -> Tensor:
        input_ids[0, -1].item()  # it is written once an accelerator has done it
        self.times.append(time.perf_counter())
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def decoding_times(model: nn.Module, prompts: Batch, new: int) -> list[float]:
    """Seconds until the first token is written, and then for each further one; greedily, with a cache.

    Args:
        model: a model that `decodes`, of the benchmark's own: its settings are changed.
        prompts: its inputs.
        new: how many tokens to write, two at least.
    """
    inputs = {name: value for name, value in prompts.items() if not name.startswith("decoder_")}
    model.generation_config = _settings(model, new)
    clock = _Clock()
    started = time.perf_counter()
    model.generate(**inputs, stopping_criteria=[clock])
    return [after - before for before, after in zip([started, *clock.times], clock.times, strict=False)]


def _settings(model: nn.Module, new: int) -> GenerationConfig:
    """Greedy text of this many tokens: what ends a text is a token that no vocabulary has."""
    ends = model.config.get_text_config(decoder=True).vocab_size
    start = decoder_start(model) if writes(model) else None
    return GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=new,
        eos_token_id=ends,
        pad_token_id=0,
        decoder_start_token_id=start,
        use_cache=True,
    )
