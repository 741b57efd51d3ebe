"""The table of tasks that models can be measured on. A task is one small class; for a new one, a line here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from torch import nn

from ..audio_tasks import AudioClassification, SpeechRecognition
from ..figures import Measurement
from ..image_tasks import ImageClassification, ObjectDetection, SemanticSegmentation
from ..text_tasks import MultipleChoice, Perplexity, Summarization, Translation
from .accuracy import GlueAccuracy
from .glue import TASKS


class Samples(Protocol):
    """Samples of a task, which know how to be called."""

    def __len__(self) -> int: ...

    def described(self, task: str) -> dict[str, Any]:
        """The fields of an `Evaluation` that say what was measured on."""


class Task(Protocol):
    """What is known of a task; what it asks of its users are the arguments of its class.

    Args:
        name: what users call it.
    """

    name: str

    def read(self, *, data: Any, data_dir: Any, split: str | None, max_samples: int | None) -> Samples:
        """The samples, before any model is run; raises `ValueError` if there are none, or no labels."""

    def check(self, model: nn.Module, processor: Any, samples: Any) -> None:
        """Raises `ValueError` if the model cannot be measured on these samples."""

    def check_each(self, model: nn.Module, processor: Any, samples: Any) -> None:
        """Raises `ValueError` if a single sample cannot be used: better now than after an hour."""

    def measure(self, model: nn.Module, processor: Any, samples: Any, batch_size: int) -> Measurement:
        """The metrics of a model."""

    def show(self, samples: Any, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """Files for the model card, by name: what each model's `Measurement.shown` looks like."""


_TASKS = (
    ImageClassification,
    SemanticSegmentation,
    ObjectDetection,
    Perplexity,
    MultipleChoice,
    Summarization,
    Translation,
    SpeechRecognition,
    AudioClassification,
)
KNOWN: dict[str, Callable[..., Task]] = {
    **{f"glue/{name}": (lambda row=row: GlueAccuracy(row)) for name, row in TASKS.items()},
    **{task.name: task for task in _TASKS},
}
"""Name -> what makes the task of the options that it takes."""

_ALSO = {
    "image-segmentation": "semantic-segmentation",
    "text-generation": "perplexity",
    "asr": "automatic-speech-recognition",
    **{name: f"glue/{name}" for name in TASKS},
}


def find_task(name: str, **options: Any) -> Task:
    """The task of this name.

    Args:
        name: such as `"glue/sst2"` or `"image-classification"`.
        **options: what its class takes; `None` leaves its default.

    Raises:
        ValueError: no such task, or an option that it does not take; lists those there are.
    """
    make = KNOWN.get(_ALSO.get(name, name))
    if make is None:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(KNOWN)}.")
    options = {key: value for key, value in options.items() if value is not None}
    taken = [key for key in inspect.signature(make).parameters if key != "row"]
    if unknown := [key for key in options if key not in taken]:
        raise ValueError(f"{name} does not take {', '.join(unknown)}; it takes {', '.join(taken) or 'no options'}.")
    return make(**options)
