"""The nine GLUE tasks (Wang et al. 2019): a table, and their samples from the Hub or from TSV files."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..reading.tables import read_tsv

DATASET = "nyu-mll/glue"


@dataclass(frozen=True)
class TsvFiles:
    """TSV files of one task in one layout; fields are not quoted.

    Args:
        files: split -> the files that make it up.
        columns: names of the fields, for files whose first line does not name them.
    """

    files: Mapping[str, tuple[str, ...]]
    columns: tuple[str, ...] = ()


_GLUE_FILES = TsvFiles({"train": ("train.tsv",), "validation": ("dev.tsv",), "test": ("test.tsv",)})


@dataclass(frozen=True)
class GlueTask:
    """One row of the table.

    Args:
        name: the task's name, which is a configuration of the data set on the Hub.
        folder: the task's folder in the TSV layout.
        texts: columns to feed the tokenizer.
        labels: names of the classes in the data set's order; empty for a regression.
        metrics: the official metrics, by their names in `optimum_optin.evaluation.metrics.METRICS`.
        renamed: the Hub's column -> the TSV's, where they differ.
        layouts: the task's TSV layouts; the first one found is read.
    """

    name: str
    folder: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    renamed: Mapping[str, str] | None = None
    layouts: tuple[TsvFiles, ...] = (_GLUE_FILES,)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits, by the Hub's names."""
        return tuple(self.layouts[0].files)

    @property
    def default_split(self) -> str:
        """The split to evaluate on: validation, for MNLI the matched one."""
        return next(split for split in self.splits if split.startswith("validation"))


_PAIR = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_COLA_COLUMNS = ("source", "label", "mark", "sentence")
_STSB_COLUMNS = ("genre", "file", "year", "index", "score", "sentence1", "sentence2")

TASKS = {
    task.name: task
    for task in (
        GlueTask(
            "cola",
            "CoLA",
            ("sentence",),
            ("unacceptable", "acceptable"),
            ("matthews_correlation",),
            layouts=(
                TsvFiles({"train": ("train.tsv",), "validation": ("dev.tsv",)}, _COLA_COLUMNS),
                # CoLA's own release; GLUE's dev set is made of both of its dev files.
                TsvFiles(
                    {"train": ("in_domain_train.tsv",), "validation": ("in_domain_dev.tsv", "out_of_domain_dev.tsv")},
                    _COLA_COLUMNS,
                ),
            ),
        ),
        GlueTask("sst2", "SST-2", ("sentence",), ("negative", "positive")),
        GlueTask(
            "mrpc",
            "MRPC",
            _PAIR,
            ("not_equivalent", "equivalent"),
            ("accuracy", "f1"),
            {"sentence1": "#1 String", "sentence2": "#2 String", "label": "Quality"},
        ),
        GlueTask(
            "stsb",
            "STS-B",
            _PAIR,
            (),
            ("pearson", "spearmanr"),
            {"label": "score"},
            layouts=(
                _GLUE_FILES,
                # STSbenchmark's own release.
                TsvFiles(
                    {"train": ("sts-train.tsv",), "validation": ("sts-dev.tsv",), "test": ("sts-test.tsv",)},
                    _STSB_COLUMNS,
                ),
            ),
        ),
        GlueTask(
            "qqp",
            "QQP",
            ("question1", "question2"),
            ("not_duplicate", "duplicate"),
            ("accuracy", "f1"),
            {"label": "is_duplicate"},
        ),
        GlueTask(
            "mnli",
            "MNLI",
            ("premise", "hypothesis"),
            ("entailment", "neutral", "contradiction"),
            renamed={"premise": "sentence1", "hypothesis": "sentence2", "label": "gold_label"},
            layouts=(
                TsvFiles(
                    {
                        "train": ("train.tsv",),
                        "validation_matched": ("dev_matched.tsv",),
                        "validation_mismatched": ("dev_mismatched.tsv",),
                        "test_matched": ("test_matched.tsv",),
                        "test_mismatched": ("test_mismatched.tsv",),
                    }
                ),
            ),
        ),
        GlueTask("qnli", "QNLI", ("question", "sentence"), _ENTAILMENT),
        GlueTask("rte", "RTE", _PAIR, _ENTAILMENT),
        GlueTask("wnli", "WNLI", _PAIR, ("not_entailment", "entailment")),
    )
}


@dataclass(frozen=True)
class GlueSamples:
    """Labelled samples of one task and split.

    Args:
        task: the task.
        split: the split, by the Hub's name.
        texts: one string, or two, for each sample.
        labels: class index in the data set's order, or score, shape (samples,).
    """

    task: GlueTask
    split: str
    texts: list[tuple[str, ...]]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.texts)

    def described(self, task: str) -> dict[str, Any]:
        """The samples in words: task, data set, its configuration and split, and how many there are."""
        return {
            "task": task,
            "dataset": DATASET,
            "config": self.task.name,
            "split": self.split,
            "samples": len(self),
        }


def find_task(name: str) -> GlueTask:
    """The task with a name like `"sst2"` or `"glue/sst2"`.

    Raises:
        ValueError: no such task; lists those there are.
    """
    key = name.removeprefix("glue/")
    if key not in TASKS:
        raise ValueError(f"unknown task {name!r}; known: {', '.join(f'glue/{known}' for known in TASKS)}.")
    return TASKS[key]


def read_glue(
    task: str,
    *,
    data_dir: str | os.PathLike | None = None,
    split: str | None = None,
    max_samples: int | None = None,
) -> GlueSamples:
    """Labelled samples of a task.

    Args:
        task: `"sst2"` or `"glue/sst2"`, and so on.
        data_dir: folder in the GLUE TSV layout (`SST-2/dev.tsv`, ...); `None` asks the Hub.
        split: split to read, by its name on the Hub; `None` takes validation, for MNLI `"validation_matched"`.
        max_samples: samples to draw at most, with a fixed seed; `None` takes all.

    Raises:
        ValueError: unknown task or split, missing columns, no samples, or no labels.
        FileNotFoundError: `data_dir` does not hold the task.
        ConnectionError: the Hub does not answer.
    """
    row = find_task(task)
    split = split or row.default_split
    if split not in row.splits:
        raise ValueError(f"glue/{row.name} has no split {split!r}; it has {', '.join(row.splits)}.")
    if max_samples is not None and (not isinstance(max_samples, int) or max_samples < 1):
        raise ValueError(f"max_samples={max_samples!r} must be a whole number of at least 1, or None for all.")
    texts, labels = _from_hub(row, split) if data_dir is None else _from_tsv(row, split, Path(data_dir))
    if not texts:
        raise ValueError(f"split {split!r} of glue/{row.name} is empty.")
    if min(labels) < 0:
        raise ValueError(f"split {split!r} of glue/{row.name} has no labels: take {row.default_split!r}.")
    order = torch.randperm(len(texts), generator=torch.Generator().manual_seed(0))[:max_samples].sort().values
    return GlueSamples(row, split, [texts[index] for index in order.tolist()], torch.tensor(labels)[order])


def _from_hub(task: GlueTask, split: str) -> tuple[list[tuple[str, ...]], list[float]]:
    from datasets import load_dataset  # slow to import

    try:
        dataset = load_dataset(DATASET, task.name, split=split)
    except OSError as error:
        raise ConnectionError(
            f"cannot read {DATASET} from the Hub: {error}. Without it, give data_dir=, a folder that holds "
            f"{_layouts(task, split)}."
        ) from error
    _check_columns(DATASET, dataset.column_names, (*task.texts, "label"))
    return list(zip(*(dataset[name] for name in task.texts), strict=True)), list(dataset["label"])


def _from_tsv(task: GlueTask, split: str, data_dir: Path) -> tuple[list[tuple[str, ...]], list[float]]:
    folder = data_dir / task.folder
    for layout in task.layouts:
        files = [folder / name for name in layout.files.get(split, ())]
        if files and all(file.is_file() for file in files):
            rows = [row for file in files for row in _tsv_rows(task, file, layout.columns)]
            return [texts for texts, _ in rows], [label for _, label in rows]
    raise FileNotFoundError(
        f"{data_dir} holds no {split!r} split of glue/{task.name}: data_dir= must be a folder that holds "
        f"{_layouts(task, split)}."
    )


def _tsv_rows(task: GlueTask, file: Path, columns: tuple[str, ...]) -> list[tuple[tuple[str, ...], float]]:
    table = read_tsv(file, columns)
    if not table.rows:
        return []
    renamed = task.renamed or {}
    names = [renamed.get(name, name) for name in (*task.texts, "label")]
    _check_columns(str(file), table.columns, names)
    *texts, label = map(table.columns.index, names)
    return [(tuple(row[place] for place in texts), _label(row[label], task, file)) for row in table.rows]


def _label(text: str, task: GlueTask, file: Path) -> float:
    """A class index from its name or number, or a score; -1 stands for no label."""
    indices = {name: index for index, name in enumerate(task.labels)}
    indices |= {str(index): index for index in range(-1, len(task.labels))}
    try:
        return indices[text] if task.labels else float(text)
    except (KeyError, ValueError):
        fitting = f"one of {', '.join(task.labels)} or its index" if task.labels else "a number"
        raise ValueError(f"{file}: label {text!r} must be {fitting}.") from None


def _check_columns(source: str, columns: Sequence[str], needed: Sequence[str]) -> None:
    missing = [name for name in needed if name not in columns]
    if missing:
        raise ValueError(f"{source} has no column {', '.join(missing)}; it has {', '.join(columns)}.")


def _layouts(task: GlueTask, split: str) -> str:
    named = [layout.files[split] for layout in task.layouts if split in layout.files]
    return " or ".join(" and ".join(f"{task.folder}/{name}" for name in names) for names in named)
