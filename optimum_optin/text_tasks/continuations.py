"""Continuations: what a pruned model writes after prompts, beside what the dense one writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, GenerationMixin

from ..comparing.few_logits import logits_at
from ..discovery.next_tokens import predicts_next_token
from ..figures import Continuations
from ..inputs.decoder_inputs import IDS, MASK, greedily, most_new, writes
from ..inputs.encoding import max_tokens
from ..keeping.doors import keeping
from ..running.batch import Batch, samples_in, token_mask
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen

_PROMPTS = 8
_PROMPT, _NEW = 32, 32  # tokens


@keeping("dense", "pruned")
@torch.no_grad()
def compare_continuations(
    dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch], held_out: bool = True
) -> Continuations | None:
    """Let both models go on with the first tokens of some samples, greedily, and compare what they write.

    Models whose decoder writes about what their encoder reads are given whole samples, and write until they end.

    Perplexity hides that a model no longer writes sense, as it is asked for one token at a time, after a good text.

    Args:
        dense: the model before pruning.
        pruned: one that was made from it.
        batches: batches of samples, on the models' device.
        held_out: see `Continuations`.

    Returns:
        What was found; `None` for models that do not write text, or take no more tokens than a prompt has.
    """
    if not isinstance(dense, GenerationMixin):
        return None
    if writes(dense) and IDS in batches[0]:
        return _compare_answers(dense, pruned, batches, held_out)
    if not predicts_next_token(dense):
        return None
    prompts = prompts_of(batches)
    count, begun = prompts.shape
    new = min(_NEW, max_tokens(dense) - begun)
    if new < 1:
        return None
    texts = {model: written(model, prompts, new) for model in (dense, pruned)}
    likely = new_token_logits(pruned, texts[dense], new).argmax(-1)
    agreeing = likely == texts[dense][:, begun:]
    said = {model: _log_likelihood(dense, texts[model], new) for model in texts}
    return Continuations(
        agreement=float(agreeing.double().mean()),
        log_likelihood=said[pruned],
        dense_log_likelihood=said[dense],
        prompts=count,
        tokens=new,
        held_out=held_out,
    )


def prompts_of(batches: Sequence[Batch]) -> Tensor:
    """The first tokens of the longest samples, equally many of each; shape (prompts, tokens)."""
    samples = [ids[real] for batch in batches for ids, real in zip(batch["input_ids"], token_mask(batch), strict=True)]
    longest = sorted(samples, key=len, reverse=True)[:_PROMPTS]
    return torch.stack([sample[: min(_PROMPT, *map(len, longest))] for sample in longest])


def written(model: nn.Module, prompts: Tensor, new: int) -> Tensor:
    """Prompts and what a model writes after them, taking the likeliest token each time; nothing ends it early.

    Args:
        model: a causal language model.
        prompts: token ids without padding, shape (prompts, tokens).
        new: how many tokens to write.
    """
    ends = model.config.get_text_config().vocab_size  # no token of the vocabulary
    with frozen(model):  # which takes the settings back
        model.generation_config = GenerationConfig(
            do_sample=False, num_beams=1, max_new_tokens=new, eos_token_id=ends, pad_token_id=0, use_cache=True
        )
        return model.generate(prompts, attention_mask=torch.ones_like(prompts))


def new_token_logits(model: nn.Module, texts: Tensor, new: int) -> Tensor:
    """The logits that a model has for the last tokens of texts, each after all that comes before it.

    Args:
        model: a causal language model.
        texts: token ids, shape (texts, tokens).
        new: how many tokens at the end count.

    Returns:
        Shape (texts, new, vocabulary).
    """
    count, length = texts.shape
    places = torch.arange(length - new - 1, length - 1)
    rows = (torch.arange(count)[:, None] * length + places).flatten().to(texts.device)
    batch = {"input_ids": texts, "attention_mask": torch.ones_like(texts)}
    with frozen(model), logits_at(model, batch, rows, bounded=False) as taken:
        logits = logits_of(run_model(model, batch)).flatten(0, 1)
    return (logits if taken else logits[rows]).view(count, new, -1)


def _log_likelihood(model: nn.Module, texts: Tensor, new: int) -> float:
    """The mean of log p over the last tokens of texts."""
    shares = new_token_logits(model, texts, new).float().log_softmax(-1)
    return float(shares.gather(-1, texts[:, -new:, None].to(shares.device)).double().mean())


def _compare_answers(dense: nn.Module, pruned: nn.Module, batches: Sequence[Batch], held_out: bool) -> Continuations:
    """The same for models with an encoder and a decoder, on the first samples."""
    new = min(_NEW, most_new(dense))
    agreeing, said = [], {dense: [], pruned: []}
    for batch in _first(batches, _PROMPTS):
        for model in (dense, pruned):
            sequences, ends = greedily(model, batch, new)
            reads, targets = _read_and_written(sequences, ends)
            logits = _logits_after(dense, batch, reads)
            shares = logits.float().log_softmax(-1).gather(-1, sequences[:, 1:, None].to(logits.device))[..., 0]
            said[model].append(shares[targets].double())
            if model is dense:  # of tokens that it is made to write, what it would have written counts
                likely = _logits_after(pruned, batch, reads).argmax(-1)
                agreeing.append((likely == logits.argmax(-1).to(likely.device))[targets])
    found = torch.cat(agreeing).double()
    return Continuations(
        agreement=float(found.mean()),
        log_likelihood=float(torch.cat(said[pruned]).mean()),
        dense_log_likelihood=float(torch.cat(said[dense]).mean()),
        prompts=min(_PROMPTS, sum(map(samples_in, batches))),
        tokens=new,
        held_out=held_out,
        answers=True,
    )


def _read_and_written(sequences: Tensor, ends: Tensor) -> tuple[Batch, Tensor]:
    """What a decoder reads when it writes these texts, and which of the next tokens are written."""
    before_end = ~ends[:, :-1].cummax(1).values
    return {IDS: sequences[:, :-1], MASK: before_end.long()}, before_end


def _logits_after(model: nn.Module, batch: Batch, reads: Batch) -> Tensor:
    """A model's logits for the token after each that its decoder reads, shape (batch, tokens, vocabulary)."""
    with frozen(model):
        return logits_of(run_model(model, {**batch, **reads}))


def _first(batches: Sequence[Batch], samples: int) -> Iterator[Batch]:
    """The first samples, in batches."""
    for batch in batches:
        yield {name: value[:samples] for name, value in batch.items()}
        samples -= samples_in(batch)
        if samples <= 0:
            return
