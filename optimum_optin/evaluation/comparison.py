"""Models on one task: what its metrics say of the dense and of the pruned one, on the same samples."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..figures import Evaluation, Measurement, MetricValues
from ..keeping.doors import keeping
from .registry import Samples, Task, find_task


@dataclass(frozen=True)
class Comparison:
    """What was measured.

    Args:
        entry: the entry of a report.
        files: pictures for the model card, name -> content.
    """

    entry: Evaluation
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenTask:
    """A task with its samples, for any number of models; see `open_task`.

    Args:
        task: the task.
        samples: what it is measured on.
        batch_size: samples per forward pass.
        processor: the models' tokenizer or image processor.
    """

    task: Task
    samples: Samples
    batch_size: int
    processor: Any

    def check(self, *models: nn.Module) -> None:
        """Raise if a model cannot be measured, or a sample not be used; no model is run.

        Raises:
            ValueError: see `evaluate_model`.
        """
        for model in models:
            self.task.check(model, self.processor, self.samples)
        self.task.check_each(models[0], self.processor, self.samples)

    def measure(self, model: nn.Module) -> Measurement:
        """What a model does on the samples."""
        return self.task.measure(model, self.processor, self.samples, self.batch_size)

    def described(self) -> dict[str, Any]:
        """What the samples are: fields of an `Evaluation`."""
        return self.samples.described(self.task.name)

    def entry(self, found: Mapping[str, Measurement]) -> Evaluation:
        """The entry of a report, of what the `"dense"` and, if it was measured, the `"pruned"` model do."""
        metrics: dict[str, dict[str, Any]] = {}
        classes: dict[str, dict[str, Any]] = {}
        for which, each in found.items():
            for name, (value, error) in each.metrics.items():
                metrics.setdefault(name, {}).update({which: value, f"{which}_error": error})
            for name, value in each.classes.items():
                classes.setdefault(name, {}).update({which: value})
        return Evaluation(
            **self.described() | dict(next(iter(found.values())).described),
            metrics={name: MetricValues(**values) for name, values in metrics.items()},
            **({"classes": {name: MetricValues(**values) for name, values in classes.items()}} if classes else {}),
        )


def open_task(
    processor: Any,
    task: str,
    *,
    data: Any = None,
    data_dir: Any = None,
    split: str | None = None,
    batch_size: int = 32,
    max_samples: int | None = None,
    **options: Any,
) -> OpenTask:
    """Find a task, and read its samples; the arguments are those of `evaluate_model`, which raises the same."""
    chosen = find_task(task, **options)
    samples = chosen.read(data=data, data_dir=data_dir, split=split, max_samples=max_samples)
    return OpenTask(chosen, samples, batch_size, processor)


def compare(models: Mapping[str, nn.Module], processor: Any, task: str, **options: Any) -> Comparison:
    """Measure the `"dense"` and, if given, the `"pruned"` model on the same samples.

    Args:
        models: which of both -> the model.
        processor: their tokenizer or image processor.
        task: the task's name.
        **options: those of `evaluate_model`.

    Raises:
        ValueError: see `evaluate_model`; raised before the first forward pass.
    """
    opened = open_task(processor, task, **options)
    opened.check(*models.values())
    found = {which: opened.measure(model) for which, model in models.items()}
    shown = {which: each.shown for which, each in found.items() if each.shown is not None}
    return Comparison(opened.entry(found), opened.task.show(opened.samples, shown) if shown else {})


@keeping("model")
def evaluate_model(
    model: nn.Module,
    processor: Any,
    task: str,
    *,
    data: str | Any | None = None,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    batch_size: int = 32,
    max_samples: int | None = None,
    **options: Any,
) -> dict:
    """Measure any model on a task.

    Args:
        model: a model with a head for the task.
        processor: its tokenizer or image processor.
        task: `"glue/sst2"` and the like, `"image-classification"`, `"semantic-segmentation"`, `"object-detection"`,
            `"perplexity"`, `"multiple-choice"`, `"summarization"`, `"translation"`, `"automatic-speech-recognition"` or
            `"audio-classification"`.
        data: of all tasks but GLUE, a `datasets.Dataset` or the name of a data set on the Hub, instead of `data_dir`;
            of perplexity, a list of strings, too, and of questions and pairs of texts, a list of rows.
        data_dir: local folder; for GLUE in its TSV layout (`SST-2/dev.tsv`, ...), which `None` takes from the Hub, for
            images as docs/source/guides/evaluation.mdx shows, for perplexity with text files, for questions and pairs
            of texts with rows; or one such file.
        split: split to measure on; `None` takes validation, or what there is.
        batch_size: samples per forward pass; it does not change the figures.
        max_samples: samples to draw at most, with a fixed seed, or the first blocks of a text; `None` takes all.
        **options: of the task: of images and classes of sounds, `labels`, the names of the model's classes if its
            config has none; of segmentation, `ignore_index` and `reduce_labels`, see `SemanticSegmentation`; of
            perplexity, `block_size` and `stride`, see `Perplexity`; of speech recognition, `exact`, see
            `SpeechRecognition`; of summarization and translation, `text_columns` and `max_new_tokens`, see
            `Summarization`; of translation, `tokenize`, see `Translation`.

    Returns:
        `{"task": "image-classification", "dataset": "photos", "split": "validation", "samples": 500, "metrics":
        {"accuracy": {"value": 0.91, "error": 0.01}}}`; errors are standard errors over samples. With a metric that is a
        mean over classes, `classes` has the value of each.

    Raises:
        ValueError: unknown task, split or option, a model that does not fit the task, no processor, or unusable data.
        FileNotFoundError: `data_dir` does not hold the task.
        ConnectionError: the Hub does not answer; give `data_dir`.
        ImportError: detection needs pycocotools, translation sacrebleu.
    """
    given = {"data": data, "data_dir": data_dir, "split": split, "batch_size": batch_size, "max_samples": max_samples}
    opened = open_task(processor, task, **given, **options)
    opened.check(model)
    found = opened.measure(model)
    metrics = {name: {"value": value, "error": error} for name, (value, error) in found.metrics.items()}
    by_class = {"classes": dict(found.classes)} if found.classes else {}
    return {**opened.described(), **found.described, "metrics": metrics, **by_class}


def check_task(model: nn.Module, processor: Any, task: str, **options: Any) -> None:
    """Raise if a model cannot be measured on a task; its samples are looked for, and no model is run.

    Raises:
        ValueError, FileNotFoundError, ConnectionError, ImportError: see `evaluate_model`.
    """
    open_task(processor, task, **options).check(model)
