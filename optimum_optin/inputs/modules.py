"""Inputs of plain modules: whatever the user has, as batches like the module's example inputs."""

from __future__ import annotations

import inspect
import numbers
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..discovery.stack_tokens import tokens_of_stacks
from ..keeping.interruption import raise_interruption
from ..media.images import MODES, image_column, in_mode, open_image
from ..media.one_by_one import read_each
from ..media.values import tensor_of
from ..models.examples import example_of
from ..models.identity import device_of
from ..running.batch import Batch, samples_in
from ..running.forward import call_model, check_runs, why_not_run
from ..running.freezing import frozen
from ..running.memory import is_out_of_memory
from .encoding import TARGETS

_FEW_SHAPES = 4  # that are all run before work begins
_MASK = "attention_mask"  # the one name by which a module says which tokens are real: 1 = real, as in transformers


def module_batches(
    samples: Mapping[int, Any],
    model: nn.Module,
    processor: Any,
    *,
    batch_size: int,
    unreadable: str = "skip",
    **_of_texts: Any,
) -> list[Batch]:
    """Batches of a module's inputs; samples of one shape are put together, and nothing is padded.

    Args:
        samples: row -> a sample, in the form that `inputs_of` takes or, with a processor, an image.
        model: the module; it must have an example (`note_example`).
        processor: a callable that makes a tensor of an image; not needed for tensors.
        batch_size: samples per batch. Samples that are batches themselves are taken as they come.
        unreadable: what to do about an image that cannot be read.
        **_of_texts: options for reading texts; they are ignored.
    """
    if processor is not None and len(example_of(model)) == 1:
        samples = _processed(samples, model, processor, unreadable)
    found = [inputs_of(sample, model) for sample in samples.values()]
    if any(_is_batched(inputs, model) for inputs in found):
        return [_batched(inputs, model) for inputs in found]
    by_shape: dict[tuple, list[Batch]] = defaultdict(list)
    for inputs in found:
        by_shape[tuple(tuple(value.shape) for value in inputs.values())].append(inputs)
    parts = [
        alike[start : start + batch_size] for alike in by_shape.values() for start in range(0, len(alike), batch_size)
    ]
    return [{name: torch.stack([each[name] for each in part]) for name in part[0]} for part in parts]


def inputs_of(sample: Any, model: nn.Module) -> dict[str, Tensor]:
    """The inputs in a sample or a batch, by name, in the types of the module's example.

    Args:
        sample: a tensor or array for a module of one input; a tuple of the inputs in the order of the forward's
            arguments; or a dict. What follows the inputs in a tuple is taken for labels and left out, and so is what a
            dict holds under names that the forward does not take.
        model: the module.

    Raises:
        ValueError: an input that is missing, that has another number of dimensions or another type than in the example;
            or something beside the inputs of which it cannot be told whether it is another one.
    """
    example = example_of(model)
    inputs = {name: _tensor(value, name, model) for name, value in _named(sample, model).items()}
    over = {value.dim() - example[name].dim() for name, value in inputs.items()}
    if over not in ({0}, {-1}):
        raise ValueError(
            f"calibration data must be samples or batches like the example inputs, {_shapes(example)}, got "
            f"{_shapes(inputs)}."
        )
    return inputs


def batch_of(batch: Any, model: nn.Module) -> Batch:
    """The inputs in a batch that a `DataLoader` made; see `inputs_of`."""
    return _batched(inputs_of(batch, model), model)


def module_tokens(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Stack -> which of the tokens that its first layer gets are real, shape (batch, tokens), boolean.

    All of them are, unless there is an input `attention_mask` of as many places, whose zeros are padding.
    """
    samples, mask = samples_in(batch), batch.get(_MASK)
    found = {}
    for stack, tokens in tokens_of_stacks(model, batch).items():
        found[stack] = torch.ones(samples, tokens, dtype=torch.bool, device=next(iter(batch.values())).device)
        if mask is not None and mask.shape == found[stack].shape:
            found[stack] = mask.bool()
    return found


@torch.no_grad()
def check_example(model: nn.Module) -> None:
    """Raise if a module does not run on its example inputs, or returns nothing that could be compared.

    Raises:
        ValueError: says what its forward takes, or what it returned.
    """
    example = example_of(model)
    with frozen(model):
        check_runs(model, example)
        outputs = call_model(model, example)
    if not any(map(_is_compared, _tensors(outputs))):
        raise ValueError(
            f"{type(model).__name__} returns {type(outputs).__name__} {outputs!r:.80}, without a tensor of "
            "floating-point numbers: what is pruned is compared by its outputs, so let forward return them."
        )


def usual_tokens(model: nn.Module) -> int:
    """How many tokens the first stack gets of a sample of the example inputs."""
    return next(iter(tokens_of_stacks(model, probe_module(model)).values()))


def probe_module(model: nn.Module, tokens: int | None = None) -> Batch:
    """The first sample of the module's example inputs, on its device.

    Args:
        model: the module.
        tokens: how many tokens it is to have; `None` for whatever it has.

    Raises:
        ValueError: it has another number of tokens.
    """
    probe = {name: value[:1].to(device_of(model)) for name, value in example_of(model).items()}
    if tokens is not None and (usual := usual_tokens(model)) != tokens:
        raise ValueError(
            f"tokens={tokens} is not what this {type(model).__name__} makes of a sample of its example inputs: {usual}."
        )
    return probe


@torch.no_grad()
def check_inputs_of_module(batches: Sequence[Batch], model: nn.Module) -> None:
    """Raise if a module cannot take these batches, found by running it on a sample of each shape (of many, of a few).

    Raises:
        ValueError: values that are not finite, or samples that the module does not run on.
    """
    for number, batch in enumerate(batches):
        for name, value in batch.items():
            if value.numel() == 0 or (value.is_floating_point() and not value.isfinite().all()):
                raise ValueError(f"{name} of calibration batch {number} is empty, or NaN or infinite: check it.")
    shapes = {tuple(value.shape[1:] for value in batch.values()): batch for batch in reversed(batches)}
    ordered = sorted(shapes.values(), key=lambda batch: sum(value[0].numel() for value in batch.values()))
    trials = ordered if len(ordered) <= _FEW_SHAPES else [ordered[0], ordered[-1]]
    trials = [{name: value[:1] for name, value in batch.items()} for batch in trials]
    for batch in (*trials, *_extremes(batches)):
        inputs = {name: value.to(device_of(model)) for name, value in batch.items()}
        try:
            with frozen(model):
                call_model(model, inputs)
        except Exception as error:  # whatever a forward may raise
            raise_interruption(error)
            if is_out_of_memory(error):
                raise
            raise ValueError(
                f"calibration data do not fit: on {_shapes(batch)}, {type(model).__name__} "
                f"{why_not_run(model, inputs, error)}."
            ) from error


def _is_compared(output: Tensor) -> bool:
    return output.is_floating_point() and output.dim() > 0


def _tensors(outputs: Any) -> Iterator[Tensor]:
    """All tensors in whatever a module returns."""
    if isinstance(outputs, Tensor):
        yield outputs
    elif isinstance(outputs, (tuple, list)):
        yield from (found for each in outputs for found in _tensors(each))
    elif isinstance(outputs, Mapping) or hasattr(outputs, "__dict__"):
        yield from _tensors(list((outputs if isinstance(outputs, Mapping) else vars(outputs)).values()))


def _extremes(batches: Sequence[Batch]) -> list[Batch]:
    """The samples that hold the least and the greatest whole number of an input, an index that may be out of range."""
    found = []
    for name in (name for name, value in batches[0].items() if not value.is_floating_point()):
        for extreme in (torch.amin, torch.amax):
            values = [extreme(batch[name].flatten(1).long(), 1) for batch in batches]
            tops = torch.stack([extreme(each, 0) for each in values])
            number = int(tops.argmin() if extreme is torch.amin else tops.argmax())
            row = int(values[number].argmin() if extreme is torch.amin else values[number].argmax())
            found.append({each: value[row : row + 1] for each, value in batches[number].items()})
    return found


def _named(sample: Any, model: nn.Module) -> dict[str, Any]:
    """The inputs in a sample by name, as they stand there."""
    names, kind = list(example_of(model)), type(model).__name__
    if hasattr(sample, "_asdict"):
        sample = sample._asdict()
    if isinstance(sample, Mapping):
        if missing := [name for name in names if name not in sample]:
            raise ValueError(
                f"calibration data lack {' and '.join(map(repr, missing))}, which {kind} reads by its example inputs: "
                f"they have {', '.join(map(str, sample)) or 'nothing'}."
            )
        signature = inspect.signature(model.forward).parameters
        others = [name for name in sample if name in signature and name not in names and name not in TARGETS]
        if others:
            raise ValueError(
                f"calibration data hold {' and '.join(map(repr, others))}, which {kind} takes, but the example inputs "
                "do not: add it there, or leave it out of the data."
            )
        return {name: sample[name] for name in names}
    parts = [sample]
    if isinstance(sample, (tuple, list)) and not all(isinstance(each, numbers.Number) for each in sample):
        parts = list(sample)
    if len(parts) < len(names):
        raise ValueError(
            f"{kind} reads {', '.join(names)} by its example inputs, and the calibration data hold "
            f"{'a single value' if len(parts) == 1 else f'{len(parts)} values'} for each sample: give tuples of "
            f"{len(names)}, or dicts."
        )
    _check_labels(parts[len(names) :], model)
    return dict(zip(names, parts, strict=False))


def _check_labels(others: Sequence[Any], model: nn.Module) -> None:
    """Raise if what follows the inputs in a tuple may be one that the module takes, too."""
    names = list(example_of(model))
    parameters = inspect.signature(model.forward).parameters.values()
    places = [each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    free = [name for name in places if name not in names and name not in TARGETS]
    sizes = {value.dim() for value in example_of(model).values()}
    for other, name in zip(others, free, strict=False):
        if isinstance(other, (Tensor, np.ndarray)) and other.ndim + 1 >= min(sizes) > 1 and other.ndim:
            raise ValueError(
                f"calibration data are tuples of {len(names) + len(others)}, and {type(model).__name__} takes "
                f"{name!r} after {', '.join(names)}, which the example inputs lack: is the value there an input or a "
                "label? Give dicts, or tuples of the inputs alone."
            )


def _tensor(value: Any, name: str, model: nn.Module) -> Tensor:
    """An input as a tensor of the type that it has in the example."""
    expected = example_of(model)[name]
    try:
        tensor = value.detach() if isinstance(value, Tensor) else tensor_of(value)
    except (TypeError, ValueError, RuntimeError):
        tensor = None
    if tensor is None or tensor.is_floating_point() != expected.is_floating_point():
        given = type(value).__name__ if tensor is None else str(tensor.dtype).removeprefix("torch.")
        shown = f"of shape {tuple(value.shape)}" if hasattr(value, "shape") else f"{value!r:.80}"
        raise ValueError(
            f"calibration data hold {given} for {name!r}, {shown}, and {type(model).__name__} reads "
            f"{str(expected.dtype).removeprefix('torch.')} there by its example inputs: give tensors of that type, or "
            "processor=, a callable that makes one of an image."
        )
    return tensor.to("cpu", expected.dtype)


def _processed(
    samples: Mapping[int, Any], model: nn.Module, processor: Callable[[Any], Any], unreadable: str
) -> dict[int, Any]:
    """The samples with tensors in the place of images; those that are tensors already stay as they are."""
    ((name, expected),) = example_of(model).items()
    images = {row: _image_in(sample, name, model) for row, sample in samples.items()}
    mode = MODES.get(expected.shape[1]) if expected.dim() == 4 else None

    def ready(image: Any) -> dict[str, Tensor]:
        fits = isinstance(image, Tensor) and image.is_floating_point() == expected.is_floating_point()
        if fits and image.dim() in (expected.dim(), expected.dim() - 1):
            return {name: image}
        made = processor(open_image(image) if mode is None else in_mode(image, mode))
        if isinstance(made, Mapping):  # of an image processor of transformers
            made = made[name] if name in made else made.get("pixel_values")
        made = made[0] if isinstance(made, list) and len(made) == 1 else made
        made = _tensor(made, name, model)
        return {name: made[0] if made.dim() == expected.dim() and len(made) == 1 else made}

    read = read_each(images, ready, unreadable)
    return {row: inputs for row, inputs in zip(images, read, strict=True) if inputs is not None}


def _image_in(sample: Any, name: str, model: nn.Module) -> Any:
    """The image in a sample, or what else stands in its place."""
    if isinstance(sample, Mapping) and set(sample) != {"bytes", "path"}:
        return sample[name if name in sample else image_column(sample, model)]
    if isinstance(sample, (tuple, list)) and sample:
        _check_labels(list(sample)[1:], model)
        return sample[0]
    return sample


def _is_batched(inputs: Mapping[str, Tensor], model: nn.Module) -> bool:
    name, value = next(iter(inputs.items()))
    return value.dim() == example_of(model)[name].dim()


def _batched(inputs: dict[str, Tensor], model: nn.Module) -> Batch:
    if not _is_batched(inputs, model):
        raise ValueError(
            f"calibration data must be batches like the example inputs, {_shapes(example_of(model))}, got "
            f"{_shapes(inputs)}: the first dimension is that of the samples."
        )
    if len({len(value) for value in inputs.values()}) != 1:
        raise ValueError(f"inputs of a batch must have the same number of samples, got {_shapes(inputs)}.")
    return inputs


def _shapes(inputs: Mapping[str, Tensor]) -> str:
    return ", ".join(f"{name} {tuple(value.shape)}" for name, value in inputs.items())
