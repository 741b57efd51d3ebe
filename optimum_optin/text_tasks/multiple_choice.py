"""Multiple choice by likelihood: which of some texts a language model finds likeliest after a question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..config_values import check_integer
from ..figures import Measurement
from ..inputs.encoding import max_tokens, pad_in_batches, tokenizer_of
from ..models.copies import working_copy
from ..models.identity import device_of
from ..reading.plain_text import without_surrogates
from ..running.batch import token_mask
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen
from .answers import mean_over_samples
from .causal_models import check_causal, check_vocabulary, most_at_once, surprises
from .questions import Questions, read_questions


class MultipleChoice:
    """Which of several choices a causal language model finds likeliest after a question.

    Metrics are `accuracy`, by the sum of log p over a choice's tokens, and `accuracy_norm`, by that sum divided by the
    number of the choice's characters: what lm-evaluation-harness calls `acc` and `acc_norm`. A choice follows its
    question after a space. Of equally likely choices, the first counts.

    Samples are rows with a question, choices and the right one; see `questions.question_of`. What a model is to read
    before its answer (examples, "Answer:") is part of the question.
    """

    name = "multiple-choice"

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> Questions:
        """The questions; see `read_questions`."""
        return read_questions(self.name, data=data, data_dir=data_dir, split=split, max_samples=max_samples)

    def check(self, model: nn.Module, processor: Any, samples: Questions) -> None:
        """Raise if the model cannot be measured on these questions.

        Raises:
            ValueError: no language model that predicts the next token, no tokenizer or another model's, or a choice
                that is longer than the model takes.
        """
        check_causal(model, processor, self.name)
        _encoded(model, processor, samples)

    def check_each(self, model: nn.Module, processor: Any, samples: Questions) -> None:
        """All was checked with the model."""

    def measure(self, model: nn.Module, processor: Any, samples: Questions, batch_size: int) -> Measurement:
        """The share of questions whose right choice is the likeliest, in sum and by character.

        Raises:
            ValueError: see `check`; or logits that are not finite.
        """
        right: dict[str, list[float]] = {"accuracy": [], "accuracy_norm": []}
        sums = choice_likelihoods(model, processor, samples, batch_size)
        for question, each in zip(samples.questions, sums, strict=True):
            lengths = torch.tensor([len(choice.strip()) for choice in question.choices])
            for name, values in (("accuracy", each), ("accuracy_norm", each / lengths)):
                right[name].append(float(values.argmax() == question.right))
        metrics = {name: mean_over_samples(values) for name, values in right.items()}
        return Measurement(metrics, described={"protocol": "log-likelihood of each choice after its question"})

    def show(self, samples: Questions, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}


def choice_likelihoods(model: nn.Module, processor: Any, samples: Questions, batch_size: int) -> list[Tensor]:
    """For each question, the sum of log p over the tokens of each of its choices, in nats, float64.

    Args:
        model: a causal language model; it is left as it was.
        processor: its tokenizer, or a processor that holds one.
        samples: the questions.
        batch_size: choices at once, or fewer if memory has no room for their logits; it does not change the sums.

    Raises:
        ValueError: see `MultipleChoice.check`; or logits that are not finite.
    """
    check_integer("batch_size", batch_size, 1)
    encoded = _encoded(model, processor, samples)
    longest = max(len(tokens) for tokens, _ in encoded)
    inputs = [{"input_ids": tokens} for tokens, _ in encoded]
    batches = pad_in_batches(inputs, model, processor, min(batch_size, most_at_once(model, longest)))
    sums = torch.zeros(len(encoded), dtype=torch.float64)
    with torch.inference_mode(), frozen(model):
        for places, padded in tqdm(batches, desc=MultipleChoice.name, unit="batch"):
            batch = send_to_device(padded, device_of(model))
            logits = logits_of(run_model(model, batch))
            for place, each, ids, real in zip(places, logits, batch["input_ids"], token_mask(batch), strict=True):
                losses = surprises(each[real], ids[real])
                sums[place] = -losses[-encoded[place][1] :].double().sum().cpu()
    if not sums.isfinite().all():
        raise ValueError(f"the model's outputs on {samples.source} are not finite: its weights are damaged.")
    return list(sums.split([len(each.choices) for each in samples.questions]))


def _encoded(model: nn.Module, processor: Any, samples: Questions) -> list[tuple[list[int], int]]:
    """For each choice of each question, the tokens of both, and how many of them are the choice's."""
    tokenizer, limit = working_copy(tokenizer_of(processor)), max_tokens(model)
    before = _before(tokenizer)
    asked = [question.text.rstrip() for question in samples.questions]
    whole = [
        f"{text} {choice.strip()}"
        for text, question in zip(asked, samples.questions, strict=True)
        for choice in question.choices
    ]
    begun, answered = (iter(_plain(texts, tokenizer)) for texts in (asked, whole))
    found = []
    for question in samples.questions:
        start = len(next(begun))
        first = before if start else before or [_beginning(tokenizer)]
        for choice in question.choices:
            tokens = next(answered)
            count = max(1, len(tokens) - start)  # a tokenizer may join a choice with the question's end
            if count >= limit:
                raise ValueError(
                    f"the choice {choice!r:.40} has {count} tokens, and the model takes {limit}: leave it out."
                )
            found.append(([*first, *tokens][-limit:], count))
    check_vocabulary((token for tokens, _ in found for token in tokens), model)
    return found


def _plain(texts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """The tokens of texts alone."""
    texts = list(map(without_surrogates, texts))
    return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]


def _before(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before a text."""
    ((plain,), tokens) = _plain(["a"], tokenizer), tokenizer("a")["input_ids"]
    return list(next((tokens[:at] for at in range(len(tokens)) if tokens[at : at + len(plain)] == plain), []))


def _beginning(tokenizer: Any) -> int:
    """A token that stands for the beginning of a text, where the tokenizer puts none there and there is no question."""
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "pad"))
    return next((each for each in ids if each is not None), 0)
