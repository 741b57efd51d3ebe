"""CIFAR-10 at its own 32 x 32 pixels, as tensors that are read from the JPEG archive once and cached as safetensors.

Convolutional networks for CIFAR-10 read these; image_data.py has the archive, and enlarges it for vision transformers.
"""

from pathlib import Path

import numpy as np
import torch
from image_data import CIFAR10_ARCHIVE, read_cifar10
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from optimum_optin.files.folders import atomic_folder

CACHE = Path.home() / ".cache" / "optimum-optin" / "cifar10"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's: what published models were trained with


def load_pixels(
    folder: Path, split: str, count: int | None = None, seed: int = 0, cache_dir: Path | None = None
) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as networks read it.

    Args:
        folder: where cifar10_jpeg.tar.xz is.
        split: "train" (50,000 images) or "test" (10,000).
        count: how many images, drawn at random (default: all, in the order of the files' names).
        seed: of the draw.
        cache_dir: where the decoded images are kept (default: ~/.cache/optimum-optin/cifar10).

    Returns:
        Normalised pixel values, shape (images, 3, 32, 32), and labels, shape (images,).
    """
    images, labels = load_bytes(folder, split, cache_dir)
    if count is not None:
        drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:count]
        images, labels = images[drawn], labels[drawn]
    return normalised(images), labels


def load_bytes(folder: Path, split: str, cache_dir: Path | None = None) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as it is: bytes of shape (images, 3, 32, 32), and labels; all of a split, by the files' names."""
    cached = Path(cache_dir or CACHE) / f"{split}.safetensors"
    key = _origin(Path(folder) / CIFAR10_ARCHIVE)
    if not _is_of(cached, key):
        images, labels = read_cifar10(folder, split)
        pixels = torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()
        with atomic_folder(cached.parent) as draft:
            save_file({"images": pixels, "labels": torch.tensor(labels)}, draft / cached.name)
            (draft / f"{split}.txt").write_text(key)
    stored = load_file(cached)
    return stored["images"], stored["labels"]


def normalised(images: Tensor) -> Tensor:
    """Bytes as networks read them."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    return (images.float() / 255 - mean) / std


@torch.no_grad()
def accuracy(model: nn.Module, pixels: Tensor, labels: Tensor, batch_size: int = 500) -> float:
    """Share of images whose class is right, of a model in evaluation mode that returns logits."""
    model.eval()
    parts = zip(pixels.split(batch_size), labels.split(batch_size), strict=True)
    return sum(int((model(part).argmax(-1) == target).sum()) for part, target in parts) / len(labels)


def _origin(archive):
    """What tells an archive from another one of the same name; nothing where there is none, so that reading says so."""
    return f"{archive.stat().st_size} bytes\n" if archive.is_file() else ""


def _is_of(cached, key):
    note = cached.with_suffix(".txt")
    return bool(key) and cached.is_file() and note.is_file() and note.read_text() == key
