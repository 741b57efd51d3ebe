"""The table of modalities: what a model's inputs are of, and all that depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoProcessor

from ..architectures.find import stack_inputs
from ..running.batch import Batch, token_mask
from .encoding import check_texts, max_tokens, probe_text, text_batches
from .images import image_batches
from .pairs import pair_batches
from .vision import check_images, image_tokens, probe_images, usual_image


@dataclass(frozen=True)
class Modality:
    """What a model's inputs are of, and all that depends on it; an entry here is all that a new one needs.

    Args:
        samples: what its samples are called.
        real_tokens: each input that a model of it makes tokens of -> which of these are real, as
            `(model, batch) -> mask`, shape (batch, tokens), boolean.
        read: makes batches of samples, `(samples, model, processor, **options) -> batches`; options are those of
            `calibration_batches` on reading.
        check: raises `ValueError` if a model cannot take these batches, `(batches, model)`.
        probe: makes one sample of so many tokens on the model's device, `(model, tokens) -> batch`; raises `ValueError`
            if the model takes no such sample.
        most_tokens: how many tokens a sample may have, `None` if that is seen only when the model runs.
        auto_processor: the auto class that loads a model's processor.
        processor: what this processor is called.
        processed: what samples are that need no processor.
    """

    samples: str
    real_tokens: Mapping[str, Callable[[nn.Module, Batch], Tensor]]
    read: Callable[..., list[Batch]]
    check: Callable[[Sequence[Batch], nn.Module], None]
    probe: Callable[[nn.Module, int], Batch]
    most_tokens: Callable[[nn.Module], int | None] = max_tokens
    auto_processor: type = AutoProcessor
    processor: str = "tokenizer"
    processed: str = "tokenised"

    @property
    def holds_text(self) -> bool:
        """Whether there is text in a sample."""
        return "input_ids" in self.real_tokens


TEXTS = Modality(
    samples="texts",
    real_tokens={"input_ids": lambda model, batch: token_mask(batch)},
    read=text_batches,
    check=check_texts,
    probe=probe_text,
)
IMAGES = Modality(
    samples="images",
    real_tokens={"pixel_values": lambda model, batch: token_mask(batch, image_tokens(model, batch))},
    read=image_batches,
    check=check_images,
    probe=probe_images,
    most_tokens=lambda model: None,
    auto_processor=AutoImageProcessor,
    processor="image processor",
    processed="pixel values",
)


def _check_pairs(batches: Sequence[Batch], model: nn.Module) -> None:
    check_texts(batches, model)
    check_images(batches, model)


PAIRS = Modality(
    samples="pairs",
    real_tokens=TEXTS.real_tokens | IMAGES.real_tokens,
    read=pair_batches,
    check=_check_pairs,
    probe=lambda model, tokens: probe_text(model, tokens) | usual_image(model),
)
MODALITIES = (TEXTS, IMAGES, PAIRS)


def modality_of(model: nn.Module) -> Modality:
    """What a model's inputs are of.

    Raises:
        ValueError: of nothing that is known here; names the inputs.
    """
    inputs = set(stack_inputs(model).values())
    for modality in MODALITIES:
        if modality.real_tokens.keys() == inputs:
            return modality
    known = (f"{each.samples} ({' and '.join(map(repr, each.real_tokens))})" for each in MODALITIES)
    raise ValueError(
        f"this {model.config.model_type!r} model reads {' and '.join(sorted(map(repr, inputs)))}, and we know only "
        f"models of {', '.join(known)}: prune the part of it that reads one of these."
    )
