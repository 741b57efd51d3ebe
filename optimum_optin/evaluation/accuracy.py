"""Accuracy of a sequence classifier on GLUE: its metrics, with their standard errors."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import logging
from transformers.utils.logging import tqdm

from ..figures import Measurement
from ..inputs.batching import check_batches
from ..inputs.encoding import padded_batches
from ..keeping.doors import keeping
from ..models.identity import config_of
from ..running.forward import logits_of, run_model
from ..running.freezing import frozen
from ..storage.tasks import class_of
from .glue import GlueSamples, GlueTask, read_glue
from .metrics import metrics_of, standard_error

logger = logging.get_logger(__name__)

Measured = dict[str, tuple[float, float]]
"""Metric -> its value and its standard error."""


class GlueAccuracy:
    """A task of GLUE, with its official metrics.

    Args:
        row: its row in the table of GLUE's tasks.
    """

    def __init__(self, row: GlueTask):
        self._row = row
        self.name = f"glue/{row.name}"

    def read(
        self, *, data: Any = None, data_dir: Any = None, split: str | None = None, max_samples: int | None = None
    ) -> GlueSamples:
        """The labelled samples; see `read_glue`.

        Raises:
            ValueError: see there; or `data`.
        """
        if data is not None:
            raise ValueError(f"{self.name} is read from the Hub, or from TSV files with data_dir=: leave data= out.")
        return read_glue(self._row.name, data_dir=data_dir, split=split, max_samples=max_samples)

    def check(self, model: PreTrainedModel, processor: Any, samples: GlueSamples) -> None:
        """See `check_model`."""
        check_model(model, processor, samples.task)

    def check_each(self, model: PreTrainedModel, processor: Any, samples: GlueSamples) -> None:
        """All was checked when they were read."""

    def measure(self, model: PreTrainedModel, processor: Any, samples: GlueSamples, batch_size: int) -> Measurement:
        """See `measure`."""
        return Measurement(measure(model, processor, samples, batch_size))

    def show(self, samples: GlueSamples, shown: Mapping[str, Any]) -> dict[str, bytes]:
        """There is no picture of a text."""
        return {}


@keeping("model")
def evaluate_glue(
    model: PreTrainedModel,
    processor: Any,
    task: str,
    *,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    batch_size: int = 32,
    max_samples: int | None = None,
) -> dict:
    """Measure any model on a GLUE task, with the task's official metrics.

    Args:
        model: a sequence classifier (for STS-B, a regressor).
        processor: its tokenizer.
        task: `"sst2"` or `"glue/sst2"`, and so on.
        data_dir: folder in the GLUE TSV layout (`SST-2/dev.tsv`, ...); `None` asks the Hub.
        split: split to measure on, by its name on the Hub; `None` takes validation, for MNLI `"validation_matched"`.
        batch_size: samples per forward pass; it does not change the figures.
        max_samples: samples to draw at most, with a fixed seed; `None` takes all.

    Returns:
        `{"task": "glue/sst2", "dataset": "nyu-mll/glue", "config": "sst2", "split": "validation", "samples": 872,
        "metrics": {"accuracy": {"value": 0.91, "error": 0.01}}}`; errors are standard errors over samples.

    Raises:
        ValueError: unknown task or split, a model that does not fit the task, no processor, or unusable data.
        FileNotFoundError: `data_dir` does not hold the task.
        ConnectionError: the Hub does not answer; give `data_dir`.
    """
    samples = read_glue(task, data_dir=data_dir, split=split, max_samples=max_samples)
    measured = measure(model, processor, samples, batch_size)
    return {
        **samples.described(f"glue/{samples.task.name}"),
        "metrics": {name: {"value": value, "error": error} for name, (value, error) in measured.items()},
    }


def measure(model: PreTrainedModel, processor: Any, samples: GlueSamples, batch_size: int = 32) -> Measured:
    """The metrics of a model on samples of a task.

    Raises:
        ValueError: the model does not fit the task, or there is no processor.
    """
    check_model(model, processor, samples.task)
    predictions = predict(model, processor, samples, batch_size)
    values = metrics_of(samples.task.metrics, predictions, samples.labels)
    return {name: (value, standard_error(name, predictions, samples.labels)) for name, value in values.items()}


def check_model(model: PreTrainedModel, processor: Any, task: GlueTask) -> None:
    """Raise if the model cannot be measured on the task.

    Raises:
        ValueError: no processor, no classifier, or another number of labels.
    """
    if config_of(model) is None:
        raise ValueError(
            f"glue/{task.name} is measured by the labels in a model's config, and {type(model).__name__} is a plain "
            "module: measure it by yourself."
        )
    if processor is None:
        raise ValueError(f"glue/{task.name} is text: pass the model's tokenizer as processor=.")
    classifies = any(kind.__name__.endswith("ForSequenceClassification") for kind in type(model).__mro__)
    if not classifies and class_of(model) is not None:  # for a class of the user's own, the outputs will tell
        raise ValueError(
            f"glue/{task.name} needs a sequence classifier, got {type(model).__name__}: load the model with "
            "task='text-classification'."
        )
    needed = len(task.labels) or 1
    if model.config.num_labels != needed:
        kind = f"classes ({', '.join(task.labels)})" if task.labels else "output, a score"
        raise ValueError(
            f"glue/{task.name} has {needed} {kind}, the model {model.config.num_labels}: take a model fine-tuned on it."
        )


def predict(model: PreTrainedModel, processor: Any, samples: GlueSamples, batch_size: int = 32) -> Tensor:
    """A class index in the data set's order, or a score, for each sample; shape (samples,), on the CPU.

    Raises:
        ValueError: a batch size below 1, logits of another shape, or outputs that are not finite.
    """
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r} must be a whole number of at least 1.")
    batches = padded_batches(samples.texts, model, processor, batch_size=batch_size)
    check_batches([batch for _, batch in batches], model)
    logits = torch.zeros(len(samples.texts), model.config.num_labels)
    with torch.inference_mode(), frozen(model):
        for rows, batch in tqdm(batches, desc=f"glue/{samples.task.name}", unit="batch"):
            found = logits_of(run_model(model, send_to_device(dict(batch), model.device)))
            if found is None or found.shape != logits[rows].shape:
                shape = None if found is None else tuple(found.shape)
                raise ValueError(
                    f"glue/{samples.task.name} needs logits of shape {tuple(logits[rows].shape)} of this batch, "
                    f"{type(model).__name__} gives {shape}."
                )
            logits[rows] = found.float().cpu()
    if not logits.isfinite().all():
        raise ValueError(f"the model's outputs on glue/{samples.task.name} are not finite: its weights are damaged.")
    if not samples.task.labels:
        return logits[:, 0]
    return logits[:, label_order(model.config.id2label, samples.task.labels)].argmax(-1)


def label_order(id2label: Mapping[int, str], labels: Sequence[str]) -> list[int]:
    """For each label of a task, the model's index of it: by name if the model has the same names, else by index.

    Args:
        id2label: the model's index -> name; case, spaces and hyphens do not matter. Other names than the task's give
            a warning.
        labels: the task's names in the data set's order.
    """
    indices = {_name(name): index for index, name in id2label.items()}
    if set(indices) == set(labels):
        return [indices[label] for label in labels]
    if any(name not in ("", "label") for name in indices):  # `LABEL_0` and `0` say nothing
        logger.warning(
            f"the model's classes are called {', '.join(map(str, id2label.values()))}, the task's {', '.join(labels)}: "
            "they are matched by index; check that the model is one for this task."
        )
    return list(range(len(labels)))


def _name(label: str) -> str:
    plain = re.sub(r"[^a-z]+", "_", str(label).lower()).strip("_")
    return {"neg": "negative", "pos": "positive"}.get(plain, plain)
