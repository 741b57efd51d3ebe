"""The real tasks that benchmarks share: a pruner, calibration texts, and metrics in percent.

Calibration and evaluation rows are disjoint. Defaults are chosen on development rows, which are held out of the
calibration rows; accuracy in the docs is of evaluation rows.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from transformers import PreTrainedModel

from optimum_optin import OptinPruner

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_models import load_reaction_bert, load_reactions, load_sentence_minilm, load_stsb, reaction_accuracy

TASKS = ("reactions", "sentences")
DEVELOPMENT_ROWS = 800


@dataclass(frozen=True)
class Task:
    """One model with its data."""

    pruner: OptinPruner
    calibration: list[str]
    metric: str
    development: Callable[[PreTrainedModel], float]
    evaluation: dict[str, Callable[[PreTrainedModel], float]]


def add_task_arguments(parser):
    """The arguments that `load_task` needs."""
    parser.add_argument("model", choices=TASKS)
    parser.add_argument("--glue-dir", help="folder of GLUE TSV files, for sentences (default: the Hub)")


def load_task(name, glue_dir=None, hold_out=False):
    """A task by name; `hold_out` keeps the development rows out of the calibration rows."""
    used = slice(0, -DEVELOPMENT_ROWS if hold_out else None)
    if name == "reactions":
        model, tokenizer = load_reaction_bert()
        evaluation, rest = load_reactions()

        def accuracy_on(rows):
            return lambda model: 100 * reaction_accuracy(model, tokenizer, rows)

        return Task(
            OptinPruner(model, tokenizer),
            [row["text"] for row in rest[used]],
            "accuracy",
            accuracy_on(rest[-DEVELOPMENT_ROWS:]),
            {"test": accuracy_on(evaluation)},
        )
    model, tokenizer = load_sentence_minilm()
    train = load_stsb("train", glue_dir)

    def similarity_on(rows):
        return lambda model: 100 * similarity(model, tokenizer, rows)

    return Task(
        OptinPruner(model, tokenizer),
        [row[name] for row in train[used] for name in ("sentence1", "sentence2")],
        "Spearman",
        similarity_on(train[-DEVELOPMENT_ROWS:]),
        {split: similarity_on(load_stsb(split, glue_dir)) for split in ("dev", "test")},
    )


def similarity(model, tokenizer, rows):
    """Spearman correlation of the mean-pooled cosine with the human scores."""
    one, other = (embed(model, tokenizer, [row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    return float(spearmanr((one * other).sum(-1), [row["label"] for row in rows]).statistic)


@torch.no_grad()
def embed(model, tokenizer, texts, batch_size=64):
    """Mean-pooled, normalised sentence embeddings, shape (texts, channels)."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    embedded = [None] * len(texts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        inputs = tokenizer([texts[index] for index in part], padding=True, truncation=True, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        for index, vector in zip(part, torch.nn.functional.normalize(pooled, dim=-1), strict=True):
            embedded[index] = vector
    return torch.stack(embedded)
