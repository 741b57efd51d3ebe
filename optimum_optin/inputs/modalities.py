"""The table of modalities: whether a model reads texts, images, pairs or sounds, and all that depends on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, nn
from transformers import AutoImageProcessor, AutoProcessor

from ..discovery.find import find_groups, stack_inputs
from ..media.frames import check_sounds, probe_sound, real_frames
from ..media.images import image_batches
from ..media.padding import real_image_tokens
from ..media.sounds import SoundProcessor, sound_batches
from ..media.vision import check_images, probe_images, usual_image
from ..models.examples import example_of
from ..models.identity import in_words, main_input_of
from ..reasons import reasons_of
from ..running.batch import Batch, token_mask
from .decoder_inputs import IDS, check_decoder_inputs, probe_decoder, written_tokens
from .encoding import check_texts, max_tokens, probe_text, text_batches
from .modules import check_inputs_of_module, module_batches, module_tokens, probe_module, usual_tokens
from .pairs import pair_batches
from .text_to_text import text_to_text_batches


@dataclass(frozen=True)
class Modality:
    """A kind of input, and all that depends on it: a new kind needs no more than an entry here.

    Args:
        samples: what its samples are called.
        real_tokens: name of each input that tokens are made of -> function `(model, batch, stack) -> mask` that tells
            which tokens of a stack are real; shape (batch, tokens), boolean.
        read: makes batches of samples, `(samples, model, processor, **options) -> batches`; the options are
            `batch_size`, `max_length`, `unreadable` and `text_columns` of `calibration_batches`.
        check: raises `ValueError` if a model cannot take these batches, `(batches, model)`.
        probe: makes one sample of a number of tokens on the model's device, `(model, tokens) -> batch`; raises
            `ValueError` if the model takes no such sample.
        most_tokens: `(model) -> number`, how many tokens a sample may have; `None` if only a run of the model tells.
        usual_tokens: `(model) -> number`, how many tokens samples count as having, if not their mean length.
        stack_tokens: `(model, batch) -> stack -> mask`, in the place of `real_tokens`.
        auto_processor: the auto class that loads a model's processor.
        processor: what this processor is called in messages.
        processed: what samples are called that need no processor.
    """

    samples: str
    real_tokens: Mapping[str, Callable[[nn.Module, Batch, str], Tensor]]
    read: Callable[..., list[Batch]]
    check: Callable[[Sequence[Batch], nn.Module], None]
    probe: Callable[[nn.Module, int], Batch]
    most_tokens: Callable[[nn.Module], int | None] = max_tokens
    usual_tokens: Callable[[nn.Module], int] | None = None
    stack_tokens: Callable[[nn.Module, Batch], dict[str, Tensor]] | None = None
    auto_processor: type = AutoProcessor
    processor: str = "tokenizer"
    processed: str = "tokenised"

    @property
    def holds_text(self) -> bool:
        """Whether there is text in a sample."""
        return not self.real_tokens.keys().isdisjoint(("input_ids", IDS))

    @property
    def decodes(self) -> bool:
        """Whether a decoder reads tokens of its own (`decoder_inputs.py`)."""
        return IDS in self.real_tokens


TEXTS = Modality(
    samples="texts",
    real_tokens={"input_ids": lambda model, batch, stack: token_mask(batch)},
    read=text_batches,
    check=check_texts,
    probe=probe_text,
)
IMAGES = Modality(
    samples="images",
    real_tokens={"pixel_values": real_image_tokens},
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
WAVES = Modality(
    samples="sounds",
    real_tokens={"input_values": real_frames},
    read=sound_batches,
    check=check_sounds,
    probe=probe_sound,
    most_tokens=lambda model: None,
    auto_processor=SoundProcessor,
    processor="feature extractor",
    processed="input values",
)
FEATURES = replace(WAVES, real_tokens={"input_features": real_frames}, processed="input features")


def followed_by_decoder(encoder: Modality, **changes) -> Modality:
    """The modality of models whose decoder writes text about what the encoder reads.

    Args:
        encoder: what the encoder reads.
        **changes: fields that differ; `read` makes batches with `labels` where samples say what is to be written.
    """

    def check(batches: Sequence[Batch], model: nn.Module) -> None:
        encoder.check(batches, model)
        check_decoder_inputs(batches, model)

    return replace(
        encoder,
        real_tokens={**encoder.real_tokens, IDS: lambda model, batch, stack: written_tokens(batch)},
        check=check,
        probe=lambda model, tokens: {**encoder.probe(model, tokens), **probe_decoder(model, tokens)},
        **changes,
    )


TEXTS_TO_TEXTS = followed_by_decoder(TEXTS, read=text_to_text_batches)
FEATURES_TO_TEXTS = followed_by_decoder(FEATURES)
MODULES = Modality(
    samples="inputs",
    real_tokens={},
    read=module_batches,
    check=check_inputs_of_module,
    probe=probe_module,
    most_tokens=lambda model: None,
    usual_tokens=usual_tokens,
    stack_tokens=module_tokens,
    processor="callable that makes tensors",
    processed="tensors",
)
MODALITIES = (TEXTS, IMAGES, PAIRS, WAVES, FEATURES, TEXTS_TO_TEXTS, FEATURES_TO_TEXTS)
_FEW = 3  # reasons in an error


def likely_modality(model: nn.Module) -> Modality:
    """The modality that a model's main input tells, without tracing; texts if it tells none."""
    main = main_input_of(model)
    return next((each for each in MODALITIES if main in each.real_tokens), TEXTS)


def modality_of(model: nn.Module) -> Modality:
    """The modality of a model, told by its inputs; of a module that came with an example, what that holds.

    Raises:
        ValueError: none has these inputs; names them. Or no units were found in it.
    """
    if example_of(model) is not None:
        return MODULES
    inputs = set(stack_inputs(model).values())
    if not inputs:
        reasons = "; ".join(map(str, reasons_of(find_groups(model).left_whole)[:_FEW]))
        raise ValueError(f"nothing of this {in_words(model)} can be pruned: {reasons or 'tracing found no units'}.")
    for modality in MODALITIES:
        if modality.real_tokens.keys() == inputs:
            return modality
    known = (f"{each.samples} ({' and '.join(map(repr, each.real_tokens))})" for each in MODALITIES)
    raise ValueError(
        f"this {in_words(model)} reads {' and '.join(sorted(map(repr, inputs)))}, and we know only "
        f"models of {', '.join(known)}: prune the part of it that reads one of these, or "
        "give an example of its inputs (OptinPruner.from_model)."
    )
