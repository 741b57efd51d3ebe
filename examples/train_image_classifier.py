"""Train a small classifier of images from scratch on Fashion-MNIST, to have a real model to prune.

    python examples/train_image_classifier.py vit
    python examples/train_image_classifier.py swin --data-dir path/to/fashion-mnist

A short plain loop: AdamW, a warm-up and a cosine, images flipped and shifted. Several processes share each batch and
train the same model but for rounding; on a CPU with other work, one process per core beats one with many threads:

    torchrun --nproc-per-node 2 examples/train_image_classifier.py vit

The result is an ordinary model folder, written only when training is done; the accuracy printed last is of the model
reloaded from it. The test images choose nothing: the last epoch is what is saved.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from image_data import FASHION_CLASSES, fashion_pixels, fashion_processor, load_fashion, read_fashion
from torch.nn.functional import cross_entropy, pad
from transformers import (
    AutoModelForImageClassification,
    DeiTConfig,
    DeiTForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
    get_cosine_schedule_with_warmup,
    set_seed,
)

from optimum_optin.files.folders import atomic_folder, check_folder

SHIFT = 1  # in pixels
# The library's 0.02 suits widths near 1,000. At 128 it keeps neurons near the origin, where they are all but linear:
# training is slow, and a third of a layer's neurons can stand in for the others.
INITIAL_DEVIATION = 0.08


@dataclass(frozen=True)
class Recipe:
    """One architecture; `config` is the model's, but for what the data say."""

    model: type[PreTrainedModel]
    config: PreTrainedConfig
    epochs: int


def _sizes(layers):
    """The vision transformers' but for their depth: 7 x 7 patches of 4 x 4 pixels."""
    return {
        "hidden_size": 128,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 512,
        "patch_size": 4,
    }


RECIPES = {
    "vit": Recipe(ViTForImageClassification, ViTConfig(**_sizes(layers=8)), epochs=10),
    "deit": Recipe(DeiTForImageClassification, DeiTConfig(**_sizes(layers=6)), epochs=6),
    "swin": Recipe(  # 14 x 14 patches in 4 windows of 7 x 7, then 7 x 7 in one
        SwinForImageClassification,
        SwinConfig(patch_size=2, embed_dim=64, depths=[2, 4], num_heads=[2, 4], window_size=7, drop_path_rate=0.0),
        epochs=3,
    ),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=RECIPES)
    parser.add_argument("--data-dir", type=Path, help="folder of the IDX files (default: of the Debian package)")
    parser.add_argument("--save-dir", type=Path, help="(default: ~/.cache/optimum-optin/fashion-ARCHITECTURE)")
    parser.add_argument("--epochs", type=int, help="(default: 10 for vit, 6 for deit, 3 for swin)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast in training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.architecture]
    default_dir = Path.home() / ".cache" / "optimum-optin" / f"fashion-{arguments.architecture}"
    save_dir = check_folder(arguments.save_dir or default_dir)

    images, labels = (torch.from_numpy(array) for array in read_fashion("train", arguments.data_dir))
    test = load_fashion("test", arguments.data_dir)
    set_seed(arguments.seed)
    model = new_model(recipe)
    accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision="bf16" if arguments.bf16 else "no")
    started = time.perf_counter()
    train(model, images, labels, accelerator, arguments)
    if accelerator.is_main_process:
        with atomic_folder(save_dir) as draft:
            model.save_pretrained(draft)
            fashion_processor().save_pretrained(draft)
        print(f"{len(images)} images, trained in {time.perf_counter() - started:.0f} s; saved in {save_dir}")
        reloaded = AutoModelForImageClassification.from_pretrained(save_dir)
        print(f"reloaded from disk, {len(test[0])} test images: accuracy {accuracy(reloaded, *test):.4f}")
    accelerator.end_training()


def new_model(recipe):
    """A model with random weights that knows its classes."""
    config = type(recipe.config).from_dict(recipe.config.to_dict())
    config.image_size, config.num_channels, config.initializer_range = 28, 1, INITIAL_DEVIATION
    config.id2label = dict(enumerate(FASHION_CLASSES))
    config.label2id = {label: index for index, label in enumerate(FASHION_CLASSES)}
    config._attn_implementation = "eager"  # the fused kernel is the slower one to train with bf16 on a CPU
    return recipe.model(config)


def train(model, images, labels, accelerator, arguments):
    """Train in place; `images` are bytes, shape (images, 28, 28)."""
    epochs = arguments.epochs or RECIPES[arguments.architecture].epochs
    steps = -(-len(images) // arguments.batch_size)
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, arguments.learning_rate, fused=True)
    schedule = get_cosine_schedule_with_warmup(optimizer, epochs * steps // 20, epochs * steps)
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    # Every process draws the same batches and works on its share of each.
    share = slice(accelerator.process_index, None, accelerator.num_processes)
    for epoch in range(epochs):
        started, sums = time.perf_counter(), torch.zeros(3, device=accelerator.device)  # loss, right, images
        for indices in torch.randperm(len(images)).split(arguments.batch_size):
            pixels = fashion_pixels(augmented(images[indices])[share]).to(accelerator.device)
            target = labels[indices][share].long().to(accelerator.device)
            logits = prepared(pixel_values=pixels).logits.float()
            loss = cross_entropy(logits, target)
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(prepared.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            right = (logits.argmax(-1) == target).sum()
            sums += torch.stack([loss.detach() * len(target), right, right.new_tensor(len(target))])
        loss_sum, right, count = accelerator.reduce(sums).tolist()
        accelerator.print(
            f"epoch {epoch + 1} of {epochs}: {time.perf_counter() - started:.0f} s; on the images as they were trained "
            f"on, loss {loss_sum / count:.3f}, accuracy {right / count:.3f}",
            flush=True,
        )


def augmented(images):
    """Each image flipped with probability 1/2 and shifted by at most a pixel; adds the channel."""
    count, height, width = images.shape
    flip = (torch.rand(count) < 0.5)[:, None, None]
    images = pad(torch.where(flip, images.flip(-1), images), [SHIFT] * 4)  # (b, h + 2, w + 2)
    down, right = torch.randint(2 * SHIFT + 1, (2, count, 1))
    rows = (down + torch.arange(height))[:, :, None]
    columns = (right + torch.arange(width))[:, None, :]
    return images[torch.arange(count)[:, None, None], rows, columns].unsqueeze(1)  # (b, 1, h, w)


@torch.no_grad()
def accuracy(model, pixels, labels, batch_size=250):
    """Share of images whose class is right, in float32."""
    parts = zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
    right = sum(int((model.eval()(pixel_values=part).logits.argmax(-1) == target).sum()) for part, target in parts)
    return right / len(labels)


if __name__ == "__main__":
    main()
