"""Annotated sounds on their way through a model: read one by one, in batches in which none changes another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn
from transformers.utils.logging import tqdm

from ..annotations.samples import AnnotatedSamples
from ..config_values import check_integer
from ..media.frames import MASK
from ..media.sounds import preparation, together
from ..models.identity import device_of, dtype_of, main_input_of
from ..reading.sound_files import sound_problem
from ..running.batch import Batch
from ..running.freezing import frozen

_WAITING = 4  # batches of sounds of odd lengths that are kept until there are more of their kind


@dataclass(frozen=True)
class Passed:
    """Sounds that were in a model together.

    Args:
        places: places of the samples.
        batch: what the model read.
        outputs: what `passed` was asked for.
    """

    places: list[int]
    batch: Batch
    outputs: Any


def passed(
    model: nn.Module,
    processor: Any,
    samples: AnnotatedSamples,
    batch_size: int,
    *,
    task: str,
    ask: Callable[[Batch], Any],
) -> Iterator[Passed]:
    """What a model says to every sound, batch by batch, without gradients.

    Every sound is prepared alone. Sounds of different lengths share a batch only where an attention mask tells them
    apart from what fills them up, so that the batch size changes nothing.

    Args:
        model: the model; it is left as it was.
        processor: its feature extractor, or a processor that holds one.
        samples: the sounds.
        batch_size: sounds per forward pass.
        task: the progress bar's name.
        ask: runs the model on a batch.

    Raises:
        ValueError: a batch size below 1, or a sound that cannot be read; names it.
    """
    check_integer("batch_size", batch_size, 1)
    name, prepare = main_input_of(model), preparation(model, processor, _problem)
    waiting: dict[tuple[int, ...], list[tuple[int, Mapping[str, Tensor]]]] = {}

    def run(kind: tuple[int, ...]) -> Passed:
        places, inputs = map(list, zip(*waiting.pop(kind), strict=True))
        batch = together(inputs, name)
        batch[name] = batch[name].to(dtype_of(model))
        batch = send_to_device(batch, device_of(model))
        with torch.inference_mode(), frozen(model):
            return Passed(places, batch, ask(batch))

    for place in tqdm(range(len(samples)), desc=task, unit="sound"):
        try:
            inputs = prepare(samples.rows[place][samples.column])
        except OSError as error:
            raise ValueError(
                f"{samples.name(place)} cannot be read ({error}): mend it, or leave it out of the data."
            ) from error
        kind = () if MASK in inputs else tuple(inputs[name].shape)
        waiting.setdefault(kind, []).append((place, inputs))
        if len(waiting[kind]) == batch_size:
            yield run(kind)
        elif sum(map(len, waiting.values())) >= _WAITING * batch_size:
            yield run(max(waiting, key=lambda each: len(waiting[each])))
    for kind in list(waiting):
        yield run(kind)


def _problem(values: np.ndarray) -> str | None:
    """What is wrong with a wave; one that is silent can be listened to."""
    problem = sound_problem(values)
    return None if problem is not None and len(values) and np.isfinite(values).all() else problem
