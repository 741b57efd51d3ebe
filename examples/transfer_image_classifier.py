"""Prune a classifier of images on its own data, then fine-tune it on another data set.

    python examples/transfer_image_classifier.py
    python examples/transfer_image_classifier.py my-dinov2 --source cifar10 --source-dir my/cifar10 --target fashion

The source model is one of train_image_classifier.py or train_image_head.py. It is pruned on unlabelled train images of
the source, saved, and loaded again with a new head for the target's classes; plain `transformers.Trainer` does the
rest. Beside it, tuned alike: the dense model, and random units removed to the same FLOPs, without and with our refit.

The learning rate is the one that does best for the dense model on a fifth of the target's train images. The accuracy
printed is of the model reloaded from disk; test images choose nothing. Needs Pillow; digits are the file inside
scikit-learn (`pip install --no-deps scikit-learn`), of which nothing is executed.
"""

import argparse
import gzip
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean

import numpy as np
import random_scorer  # noqa: F401, registers "random"
import torch
from demo_models import package_folder
from image_data import CIFAR10_CLASSES, FASHION_CLASSES, read_cifar10, read_fashion
from train_image_classifier import accuracy
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.utils import logging

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.files.folders import check_folder

DIGITS_TRAIN = 1000  # of 1,797; the others are for the test


def cifar10(split, folder, count, seed):
    """CIFAR-10 as JPEG files."""
    if folder is None:
        raise SystemExit("CIFAR-10 needs the folder of cifar10_jpeg.tar.xz: give --source-dir, or --target-dir.")
    return read_cifar10(folder, split, count, seed)


def fashion(split, folder, count, seed):
    """Fashion-MNIST."""
    return drawn(*read_fashion(split, folder), count, seed)


def digits(split, folder, count, seed):
    """The 8 x 8 digits of scikit-learn, split at random, always the same way."""
    path = Path(folder or package_folder("sklearn") / "datasets" / "data") / "digits.csv.gz"
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    rows = rows[np.random.default_rng(0).permutation(len(rows))]
    rows = rows[:DIGITS_TRAIN] if split == "train" else rows[DIGITS_TRAIN:]
    images = rows[:, :-1].reshape(-1, 8, 8) * 15  # 0 to 16 -> 0 to 240
    return drawn(images, rows[:, -1], count, seed)


def drawn(images, labels, count, seed):
    """At most `count` arrays as Pillow's images, drawn at random, and their labels."""
    from PIL import Image

    indices = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    return [Image.fromarray(images[index]) for index in indices], labels[indices].tolist()


@dataclass(frozen=True)
class Data:
    """One data set; `read(split, folder, count, seed)` gives Pillow's images and labels."""

    read: Callable
    classes: tuple[str, ...]


DATA = {
    "cifar10": Data(cifar10, CIFAR10_CLASSES),
    "digits": Data(digits, tuple("0123456789")),
    "fashion": Data(fashion, FASHION_CLASSES),
}


METHODS = {
    "dense": None,
    "pruned": OptinConfig(),
    "random": OptinConfig(scorer="random", search="ranked", compensation="none"),
    "random-refitted": OptinConfig(scorer="random", search="ranked"),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default_model = Path.home() / ".cache" / "optimum-optin" / "fashion-vit"
    parser.add_argument("model", nargs="?", type=Path, default=default_model, help="folder (default: %(default)s)")
    parser.add_argument("--source", choices=DATA, default="fashion", help="what it classifies (default: %(default)s)")
    parser.add_argument("--source-dir", type=Path, help="folder of the source's files, see image_data.py")
    parser.add_argument("--target", choices=DATA, default="digits", help="(default: %(default)s)")
    parser.add_argument("--target-dir", type=Path, help="folder of the target's files")
    parser.add_argument("--flops", type=float, default=0.6, help="share of MACs to keep (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=512, help="images to calibrate on (default: %(default)s)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="(default: all)")
    parser.add_argument("--train-images", type=int, default=1000, help="of the target (default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=1000, help="at most (default: %(default)s)")
    parser.add_argument("--epochs", type=float, default=10, help="(default: %(default)g)")
    parser.add_argument("--batch-size", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument(
        "--learning-rates",
        type=float,
        nargs="+",
        default=[1e-4, 3e-4, 1e-3],
        help="to choose from (default: %(default)s)",
    )
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast, tests included")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of calibration and training (default: 0)")
    parser.add_argument("--save-dir", type=Path, default=Path("outputs/transfer"), help="(default: %(default)s)")
    arguments = parser.parse_args()
    save_dir = check_folder(arguments.save_dir)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    source, target = DATA[arguments.source], DATA[arguments.target]
    pruner = OptinPruner.from_pretrained(arguments.model, task="image-classification")
    train, test = (
        inputs(pruner, *target.read(split, arguments.target_dir, count, seed=0))
        for split, count in (("train", arguments.train_images), ("test", arguments.test_images))
    )
    calibration = {
        seed: source.read("train", arguments.source_dir, arguments.samples, seed)[0] for seed in arguments.seeds
    }
    rate = best_rate(arguments, train)
    print(f"{len(train[1])} train images, {len(test[1])} test images, learning rate {rate:g}", flush=True)

    found = {method: [] for method in arguments.methods}
    for seed in arguments.seeds:
        for method in arguments.methods:
            started, start, share = time.perf_counter(), arguments.model, 1.0
            if METHODS[method] is not None:
                start = save_dir / f"{method}-{seed}"
                config = replace(METHODS[method], flops=arguments.flops, num_samples=arguments.samples, seed=seed)
                pruner.prune(calibration[seed], config, save_dir=start)
                share = pruner.report.flops_achieved
            seconds = time.perf_counter() - started
            tuned = save_dir / f"{method}-{seed}-{arguments.target}"
            finetune(start, tuned, train, arguments, rate=rate, seed=seed)
            found[method].append(tested(tuned, test, arguments.bf16))
            print(
                f"seed {seed}, {method}: FLOPs {share:.3f}, accuracy {found[method][-1]:.4f}; pruned in {seconds:.0f} "
                f"s, trained and tested in {time.perf_counter() - started - seconds:.0f} s",
                flush=True,
            )
    for method, values in found.items():
        print(f"{method}: mean accuracy {mean(values):.4f} of {len(values)}")


def inputs(pruner, images, labels):
    """What the model reads, as its processor makes it: pixel values, shape (images, channels, h, w), and labels."""
    mode = "L" if pruner.model.config.num_channels == 1 else "RGB"
    pixels = pruner.processor(images=[image.convert(mode) for image in images], return_tensors="pt")["pixel_values"]
    return pixels, torch.tensor(labels)


def best_rate(arguments, train):
    """The learning rate that does best for the dense model on the last fifth after training on the rest."""
    if len(arguments.learning_rates) == 1:
        return arguments.learning_rates[0]
    used = len(train[1]) * 4 // 5
    fit, held_out = (tuple(part[rows] for part in train) for rows in (slice(used), slice(used, None)))

    def held_out_accuracy(rate):
        with tempfile.TemporaryDirectory() as folder:
            finetune(arguments.model, folder, fit, arguments, rate=rate, seed=0)
            value = tested(folder, held_out, arguments.bf16)
        print(f"learning rate {rate:g}: accuracy {value:.4f} on {len(held_out[1])} train images held out", flush=True)
        return value

    return max(arguments.learning_rates, key=held_out_accuracy)


def finetune(start, folder, train, arguments, *, rate, seed):
    """Train the model in folder `start` on the target and save it in `folder`."""
    classes = DATA[arguments.target].classes
    set_seed(seed)
    model = AutoModelForImageClassification.from_pretrained(
        start,
        id2label=dict(enumerate(classes)),
        label2id={name: index for index, name in enumerate(classes)},
        ignore_mismatched_sizes=True,  # the head of other classes
        dtype=torch.float32,
        attn_implementation="eager",  # the fused kernel is the slower one to train with bf16 on a CPU
    )
    # As many classes as before are no mismatch, so the old head would stay.
    torch.nn.init.trunc_normal_(model.classifier.weight, std=0.02)
    torch.nn.init.zeros_(model.classifier.bias)
    with tempfile.TemporaryDirectory() as scratch:
        options = TrainingArguments(
            scratch,
            num_train_epochs=arguments.epochs,
            learning_rate=rate,
            lr_scheduler_type="cosine",
            warmup_steps=0.1,  # as a share of all steps
            weight_decay=0.01,
            per_device_train_batch_size=arguments.batch_size,
            bf16=arguments.bf16,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            seed=seed,
        )
        rows = [{"pixel_values": pixels, "labels": label} for pixels, label in zip(*train, strict=True)]
        trainer = Trainer(model, options, train_dataset=rows)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        trainer.save_model(folder)
    AutoImageProcessor.from_pretrained(start).save_pretrained(folder)


def tested(folder, data, bf16):
    """Accuracy of the model in a folder."""
    model = AutoModelForImageClassification.from_pretrained(folder)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        return accuracy(model, *data)


if __name__ == "__main__":
    main()
