"""Models of sounds: how many frames they make of one, which of these are real, and whether they take some batches."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..discovery.find import find_groups, stack_inputs
from ..discovery.stack_tokens import tokens_of_stacks
from ..models.identity import device_of, dtype_of, main_input_of
from ..running.batch import Batch
from ..running.forward import call_model
from ..running.freezing import frozen

MASK = "attention_mask"
_MOST_SAMPLES = 2**26  # of a wave, more than an hour
_LENGTHS = "_get_feat_extract_output_lengths"  # transformers' own arithmetic of convolutional front ends
_FRAME_MASK = "_get_feature_vector_attention_mask"


def reads_waves(model: nn.Module) -> bool:
    """Whether a model reads waves themselves, and not features such as spectra."""
    sample = find_groups(model).sample
    return main_input_of(model) == "input_values" and (sample is None or sample["input_values"].dim() == 2)


def real_frames(model: nn.Module, batch: Batch, stack: str) -> Tensor:
    """Which frames of a stack are real, shape (batch, frames), boolean: by the batch's mask, at the rate of frames.

    All are in a batch without a mask, and in models that pad all sounds to one length by themselves (Whisper, AST).
    """
    # An adapter behind the encoder leaves fewer frames; layers come before it.
    return frames_that_are_real(model, batch, tokens_of_stacks(model, batch)[stack], add_adapter=False)


def frames_that_are_real(model: nn.Module, batch: Batch, frames: int, **options: bool) -> Tensor:
    """Which of so many frames are real, shape (batch, frames), boolean; by default, those of the model's output.

    Args:
        model: the model.
        batch: its inputs.
        frames: frames of each sound, filling included.
        **options: of transformers' own function, as far as it takes them.
    """
    main, mask = batch[main_input_of(model)], batch.get(MASK)
    if mask is not None and mask.shape[1] == frames:
        return mask.bool()
    reduce = getattr(model, _FRAME_MASK, None)
    if mask is None or reduce is None or mask.shape[1] != main.shape[1]:
        return torch.ones(len(main), frames, dtype=torch.bool, device=main.device)
    made = int(getattr(model, _LENGTHS)(torch.tensor(mask.shape[1]), **_taken(getattr(model, _LENGTHS), options)))
    real = reduce(made, mask, **_taken(reduce, options)).bool()
    if made == frames:
        return real
    return real[:, torch.arange(frames, device=real.device) * made // frames]  # SEW's layers read several as one


def frames_of(model: nn.Module, samples: int) -> int:
    """How many frames the front end makes of a wave of so many samples, 0 or less if it is too short."""
    lengths = getattr(model, _LENGTHS)
    return int(lengths(torch.tensor(samples), **_taken(lengths, {"add_adapter": False})))


def _taken(function: Callable, options: Mapping[str, bool]) -> dict[str, bool]:
    taken = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if name in taken}


def least_samples(model: nn.Module, frames: int = 1) -> int:
    """How many samples a wave must have for so many frames; 1 if the model does not say how it makes frames."""
    if not hasattr(model, _LENGTHS):
        return 1
    low, high = 1, _MOST_SAMPLES
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if frames_of(model, middle) >= frames else (middle + 1, high)
    return low


def probe_sound(model: nn.Module, tokens: int) -> Batch:
    """One silent sound of which the model makes `tokens` frames, on its device.

    Raises:
        ValueError: there is no such sound.
    """
    name = main_input_of(model)
    sample = find_groups(model).sample[name]
    usual = _frames(model, {name: sample[:1]})
    shapes = [tuple(sample[:1].shape)]
    if reads_waves(model) and hasattr(model, _LENGTHS):
        every = max(1, round(frames_of(model, sample.shape[1]) / usual))  # SEW's layers read several frames as one
        shapes = [(1, least_samples(model, tokens * every + more)) for more in range(every)]
    elif usual != tokens and sample.dim() == 2:
        shapes = [(1, sample.shape[1] * tokens // usual)]
    elif usual != tokens and sample.dim() == 3:  # features of which each time step is a row
        shapes = [(1, length, sample.shape[2]) for length in _near(sample.shape[1] * tokens // usual)]
    for shape in shapes:
        batch = {name: torch.zeros(shape, dtype=dtype_of(model), device=device_of(model))}
        try:
            if _frames(model, batch) == tokens:
                return batch
        except (ValueError, RuntimeError):
            continue
    raise ValueError(f"tokens={tokens} is not what this model makes of a sound: {usual}, say.")


def _near(length: int) -> list[int]:
    return [length, *(each for step in range(1, 9) for each in (length + step, length - step) if each > 0)]


def _frames(model: nn.Module, batch: Batch) -> int:
    """How many frames the model makes of a sound; what a decoder reads beside it is that of the traced sample."""
    counts = tokens_of_stacks(model, {**find_groups(model).sample, **batch})
    return next(counts[stack] for stack, name in stack_inputs(model).items() if name in batch)


@torch.no_grad()
def check_sounds(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if the model cannot take these batches, found by running it on the shortest and the longest one.

    Raises:
        ValueError: inputs that have another shape or type, are too short or not finite; or a mask that does not fit.
    """
    name = main_input_of(model)
    dims = find_groups(model).sample[name].dim()
    form = "(batch, samples)" if dims == 2 else "(batch, ...), as its feature extractor makes them"
    least = least_samples(model) if reads_waves(model) else 1
    for number, batch in enumerate(batches):
        values = batch[name]
        if values.dim() != dims or not values.is_floating_point():
            raise ValueError(
                f"{name} of a batch must be floating-point numbers of shape {form}, got {values.dtype} of shape "
                f"{tuple(values.shape)}: use the model's feature extractor."
            )
        if values.numel() == 0 or not values.isfinite().all():
            raise ValueError(f"{name} of calibration batch {number} are empty, or NaN or infinite: check them.")
        mask = batch.get(MASK)
        if mask is not None and mask.dim() == 2 and not mask.any(1).all():
            raise ValueError(f"calibration batch {number} holds a sound that is all padding by its {MASK}: drop it.")
        lengths = torch.tensor([values.shape[1]]) if mask is None or dims > 2 else mask.sum(1)
        if (shortest := int(lengths.min())) < least:
            raise ValueError(
                f"calibration batch {number} holds a sound of {shortest} samples, and the front end of this "
                f"{model.config.model_type!r} model takes {least} for its first frame: drop it."
            )
    ordered = sorted(batches, key=lambda batch: batch[name][0].numel())
    for batch in (ordered[0], ordered[-1]):
        inputs = {each: value[:1].to(device_of(model)) for each, value in batch.items()}
        try:
            with frozen(model):
                call_model(model, inputs)
        except (ValueError, RuntimeError) as error:
            raise ValueError(
                f"this {model.config.model_type!r} model cannot run on the calibration data, {name} of shape "
                f"{tuple(batch[name].shape)}: {error}."
            ) from error
