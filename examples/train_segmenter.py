"""Train a small segmenter of fashion scenes from scratch, to have a real model of dense prediction to prune.

    python examples/train_segmenter.py segformer --backgrounds path/to/cifar10
    python examples/train_segmenter.py mask2former --backgrounds path/to/cifar10

A short plain loop: AdamW, a warm-up and a cosine; every step sees new scenes (fashion_scenes.py). Most steps see
close-ups of 48 x 48 pixels, in which garments are as large as in whole scenes of 96 x 96 and fill half of the image:
what they are is learnt there for a quarter of the time. With --encoder-steps, the encoder first learns alone to name
the garment of close-ups that have one. SegFormer learns the class of each pixel. Mask2Former, on a
small Swin, learns one mask of each class of a scene, the background included, with the losses that transformers has
for it. While it trains, a checkpoint is kept beside the result every few hundred steps, from which the same command
goes on.

The result is an ordinary model folder, written only when training is done; the figures printed last are of the model
reloaded from it. The test scenes choose nothing: the last step is what is saved.
"""

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from fashion_scenes import CLASSES, SIZE, FashionScenes, Scene
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scene_accuracy import scene_accuracy
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    BaseImageProcessor,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessorPil,
    PreTrainedModel,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessorPil,
    SwinConfig,
    set_seed,
)
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from optimum_optin.files.folders import atomic_folder, check_folder

LABELS = {
    "id2label": dict(enumerate(CLASSES)),
    "label2id": {label: index for index, label in enumerate(CLASSES)},
}
CLOSE_UPS = 0.7  # of all steps, the first ones
CLOSE_UP = {"size": SIZE // 2, "garments": (1, 2), "shares": (0.6, 1.0)}
INITIAL_DEVIATION = 0.06  # as for other narrow models (train_image_classifier.py)
ONE_GARMENT = {**CLOSE_UP, "garments": (1, 1)}
ENCODER_BATCH, ENCODER_RATE = 64, 1e-3
WARM_UP = 0.05  # of all steps
REPORTED = 200  # steps between two lines, and two checkpoints
CHECKPOINT = "unfinished.safetensors"


@dataclass(frozen=True)
class Recipe:
    """One architecture: how to make it, and what and how it learns."""

    model: Callable[[], PreTrainedModel]
    processor: Callable[[], BaseImageProcessor]
    encoded: Callable[[PreTrainedModel, Tensor], Tensor]
    targets: Callable[[list[Scene]], dict]
    batch_size: int
    learning_rate: float


def segformer() -> PreTrainedModel:
    """A SegFormer with the encoder of B0 and half of its decoder's width."""
    config = SegformerConfig(
        decoder_hidden_size=128,
        drop_path_rate=0.0,
        classifier_dropout_prob=0.0,
        initializer_range=INITIAL_DEVIATION,
        **LABELS,
    )
    return SegformerForSemanticSegmentation(config)


def mask2former() -> PreTrainedModel:
    """A Mask2Former on a Swin of half the width of Swin-Tiny."""
    backbone = SwinConfig(
        image_size=SIZE,
        embed_dim=48,
        depths=[2, 2, 2, 2],
        num_heads=[2, 4, 8, 16],
        window_size=6,  # 24 x 24 patches in windows, then 12 x 12, one window of 6 x 6, and 3 x 3
        drop_path_rate=0.0,
        initializer_range=INITIAL_DEVIATION,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = Mask2FormerConfig(
        backbone_config=backbone,
        feature_size=64,
        mask_feature_size=64,
        hidden_dim=64,
        encoder_feedforward_dim=256,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=4,
        dim_feedforward=256,
        num_queries=20,
        train_num_points=512,
        **LABELS,
    )
    return Mask2FormerForUniversalSegmentation(config)


def segformer_encoded(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """The mean over all places of what the encoder ends with, shape (images, channels)."""
    return model.segformer(pixels).last_hidden_state.mean((2, 3))


def mask2former_encoded(model: PreTrainedModel, pixels: Tensor) -> Tensor:
    """The mean over all places of what the backbone ends with, shape (images, channels)."""
    return model.model.pixel_level_module.encoder(pixels).feature_maps[-1].mean((2, 3))


def segformer_processor() -> BaseImageProcessor:
    return SegformerImageProcessorPil(size={"height": SIZE, "width": SIZE})


def mask2former_processor() -> BaseImageProcessor:
    return Mask2FormerImageProcessorPil(size={"height": SIZE, "width": SIZE}, num_labels=len(CLASSES))


def pixel_values(scenes: list[Scene]) -> Tensor:
    """What the processors make of images that have the right size."""
    images = torch.stack([torch.from_numpy(scene.image) for scene in scenes]).float() / 255
    return ((images - torch.tensor(IMAGENET_DEFAULT_MEAN)) / torch.tensor(IMAGENET_DEFAULT_STD)).movedim(-1, 1)


def pixel_classes(scenes: list[Scene]) -> dict[str, Tensor]:
    """The class of each pixel."""
    return {"labels": torch.stack([torch.from_numpy(scene.semantic).long() for scene in scenes])}


def class_masks(scenes: list[Scene]) -> dict[str, list[Tensor]]:
    """For each scene, the classes that there are and the mask of each."""
    maps = [torch.from_numpy(scene.semantic).long() for scene in scenes]
    classes = [each.unique() for each in maps]
    masks = [(each == ids[:, None, None]).float() for each, ids in zip(maps, classes, strict=True)]
    return {"mask_labels": masks, "class_labels": classes}


RECIPES = {
    "segformer": Recipe(segformer, segformer_processor, segformer_encoded, pixel_classes, 16, learning_rate=2e-3),
    "mask2former": Recipe(mask2former, mask2former_processor, mask2former_encoded, class_masks, 8, learning_rate=5e-4),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", choices=RECIPES)
    parser.add_argument("--backgrounds", type=Path, help="folder of cifar10_jpeg.tar.xz (default: no photos)")
    parser.add_argument("--fashion-dir", type=Path, help="folder of the IDX files (default: of the Debian package)")
    parser.add_argument("--save-dir", type=Path, help="(default: ~/.cache/optimum-optin/scenes-ARCHITECTURE)")
    parser.add_argument("--steps", type=int, default=3000, help="(default: %(default)s)")
    parser.add_argument("--encoder-steps", type=int, default=0, help="of the encoder alone (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, help="in scenes (default: 16 for segformer, 8 for mask2former)")
    parser.add_argument("--test-scenes", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--bf16", action=argparse.BooleanOptionalAction, default=True, help="autocast in training")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    recipe = RECIPES[arguments.architecture]
    default_dir = Path.home() / ".cache" / "optimum-optin" / f"scenes-{arguments.architecture}"
    save_dir = check_folder(arguments.save_dir or default_dir)

    data = {"fashion_dir": arguments.fashion_dir, "cifar10_dir": arguments.backgrounds}
    close = round(CLOSE_UPS * arguments.steps)
    seed, size = arguments.seed, arguments.batch_size or recipe.batch_size
    close_ups = FashionScenes("train", close * 2 * size, seed=seed, **CLOSE_UP, **data)
    scenes = FashionScenes("train", (arguments.steps - close) * size, seed=seed, **data)
    set_seed(arguments.seed)
    model, processor = recipe.model(), recipe.processor()
    if arguments.encoder_steps and not (save_dir / CHECKPOINT).is_file():
        garments = FashionScenes("train", arguments.encoder_steps * ENCODER_BATCH, seed=seed, **ONE_GARMENT, **data)
        learn_garments(model, garments, arguments)
    train(model, close_ups, scenes, save_dir / CHECKPOINT, arguments)
    with atomic_folder(save_dir) as draft:
        model.save_pretrained(draft)
        processor.save_pretrained(draft)
    (save_dir / CHECKPOINT).unlink(missing_ok=True)
    print(f"{len(close_ups)} close-ups and {len(scenes)} scenes; saved in {save_dir}", flush=True)
    reloaded = type(model).from_pretrained(save_dir)
    test = FashionScenes("test", arguments.test_scenes, **data)
    measured = scene_accuracy(reloaded, AutoImageProcessor.from_pretrained(save_dir), test)
    print(f"reloaded from disk, {measured}")


def learn_garments(model, scenes, arguments):
    """Train the encoder in place to name the garment of a scene that has one, from the mean over all places."""
    recipe = RECIPES[arguments.architecture]
    model.train()
    with torch.no_grad():
        width = recipe.encoded(model, pixel_values([scenes[0]])).shape[1]
    head = torch.nn.Linear(width, len(CLASSES))
    used = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(used, ENCODER_RATE, weight_decay=0.05, fused=True)
    steps, right, started = len(scenes) // ENCODER_BATCH, 0, time.perf_counter()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = ENCODER_RATE * learning_rate((step + 1) / steps)
        batch = [scenes[number] for number in range(step * ENCODER_BATCH, (step + 1) * ENCODER_BATCH)]
        labels = torch.tensor([scene.classes[0] if scene.classes else 0 for scene in batch])
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            logits = head(recipe.encoded(model, pixel_values(batch))).float()
        loss = torch.nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(used, 1.0)
        optimizer.step()
        right += int((logits.argmax(-1) == labels).sum())
        if (step + 1) % REPORTED == 0:
            taken, shown = time.perf_counter() - started, REPORTED * ENCODER_BATCH
            print(f"garments, step {step + 1} of {steps}: {taken:.0f} s, accuracy {right / shown:.3f}", flush=True)
            right, started = 0, time.perf_counter()


def train(model, close_ups, scenes, checkpoint, arguments):
    """Train in place; every close-up is seen once, then every scene."""
    recipe = RECIPES[arguments.architecture]
    size = arguments.batch_size or recipe.batch_size
    close, steps = len(close_ups) // (2 * size), arguments.steps  # batches of close-ups are twice as large
    decayed = [weight for weight in model.parameters() if weight.ndim > 1]
    others = [weight for weight in model.parameters() if weight.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, recipe.learning_rate, fused=True)
    made_with = {"steps": str(steps), "batch_size": str(size), "seed": str(arguments.seed)}
    begun = resume(model, optimizer, checkpoint, made_with) if checkpoint.is_file() else 0
    model.train()
    loss_sum, started = 0.0, time.perf_counter()
    for step in range(begun, steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * learning_rate((step + 1) / steps)
        if step < close:
            batch = [close_ups[number] for number in range(2 * step * size, 2 * (step + 1) * size)]
        else:
            batch = [scenes[number] for number in range((step - close) * size, (step - close + 1) * size)]
        torch.manual_seed(arguments.seed + step)  # of the points where masks are compared: resuming changes nothing
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.bf16):
            loss = model(pixel_values=pixel_values(batch), **recipe.targets(batch)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        loss_sum += loss.item()
        if (step + 1) % REPORTED == 0 and step + 1 < steps:
            print(
                f"step {step + 1} of {steps}: {time.perf_counter() - started:.0f} s, loss {loss_sum / REPORTED:.3f}",
                flush=True,
            )
            keep(model, optimizer, checkpoint, {**made_with, "done": str(step + 1)})
            loss_sum, started = 0.0, time.perf_counter()


def learning_rate(done: float) -> float:
    """Share of the highest learning rate when this share of all steps is done: a line up, a cosine down."""
    return done / WARM_UP if done < WARM_UP else (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def keep(model, optimizer, checkpoint, metadata):
    """Write what `resume` reads: the model, both moments of each of its weights, and how it was trained."""
    content = {f"model.{name}": value.contiguous() for name, value in model.state_dict().items()}
    for name, weight in model.named_parameters():
        content |= {f"{key}.{name}": value for key, value in optimizer.state[weight].items()}
    with atomic_folder(checkpoint.parent) as draft:
        save_file(content, draft / checkpoint.name, metadata)


def resume(model, optimizer, checkpoint, expected):
    """Put a model and its optimizer where `keep` left them; the number of steps that are done."""
    with safe_open(checkpoint, "pt") as file:
        metadata = file.metadata()
    differing = [f"{name} {metadata[name]}, not {value}" for name, value in expected.items() if metadata[name] != value]
    if differing:
        raise SystemExit(f"{checkpoint} was trained with {'; '.join(differing)}: delete it, or give what it has.")
    content = load_file(checkpoint)
    model.load_state_dict({name: content[f"model.{name}"] for name in model.state_dict()})
    for name, weight in model.named_parameters():
        moments = ("exp_avg", "exp_avg_sq", "step")
        optimizer.state[weight] = {key: content[f"{key}.{name}"] for key in moments if f"{key}.{name}" in content}
    print(f"going on after step {metadata['done']}, from {checkpoint}", flush=True)
    return int(metadata["done"])


if __name__ == "__main__":
    main()
