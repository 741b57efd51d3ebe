"""Two sets of small images with ten classes each: pixel values as the models trained on them read them, and labels.

- Fashion-MNIST (Xiao et al. 2017; MIT): four IDX files as in the Debian package dataset-fashion-mnist.
- CIFAR-10 (Krizhevsky 2009) as JPEG files: a tar archive of cifar/train/CLASS/*.jpg and cifar/test/CLASS/*.jpg.

Nothing here executes pickles, and Fashion-MNIST does not need Pillow.
"""

import gzip
import io
import tarfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import ViTImageProcessorPil

FASHION_DIR = Path("/usr/share/datasets/fashion-mnist")
FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
FASHION_MEAN, FASHION_STD = 0.2860, 0.3530  # of the train split's pixels, from 0 to 1
CIFAR10_ARCHIVE = "cifar10_jpeg.tar.xz"
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_PIXELS = 98  # after enlarging: 7 x 7 patches of 14 pixels


def load_fashion(split: str, data_dir: Path | None = None) -> tuple[Tensor, Tensor]:
    """Fashion-MNIST as `fashion_processor` gives it.

    Args:
        split: "train" (60,000 images) or "test" (10,000).
        data_dir: folder of the IDX files (default: where the Debian package puts them).

    Returns:
        Pixel values, shape (images, 1, 28, 28), and labels, shape (images,).
    """
    images, labels = read_fashion(split, data_dir)
    return fashion_pixels(torch.from_numpy(images).unsqueeze(1)), torch.from_numpy(labels).long()


def fashion_pixels(images: Tensor) -> Tensor:
    """Bytes as the model reads them."""
    return (images.float() / 255 - FASHION_MEAN) / FASHION_STD


def fashion_processor() -> ViTImageProcessorPil:
    """The image processor of models trained on Fashion-MNIST; for images with one channel."""
    return ViTImageProcessorPil(size={"height": 28, "width": 28}, image_mean=[FASHION_MEAN], image_std=[FASHION_STD])


def read_fashion(split: str, data_dir: Path | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST as it is: bytes of shape (images, height, width), and labels."""
    name = {"train": "train", "test": "t10k"}[split]
    folder = Path(data_dir or FASHION_DIR)
    return _read_idx(folder / f"{name}-images-idx3-ubyte.gz"), _read_idx(folder / f"{name}-labels-idx1-ubyte.gz")


def load_cifar10(
    folder: Path, split: str, count: int | None = None, seed: int = 0, size: int = CIFAR10_PIXELS
) -> tuple[Tensor, Tensor]:
    """CIFAR-10 as `cifar10_processor` gives it.

    Args:
        folder: where the archive is.
        split: "train" (50,000 images) or "test" (10,000).
        count: how many images, drawn at random (default: all; 115 kB each at 98 pixels).
        seed: of the draw.
        size: pixels on a side.

    Returns:
        Pixel values, shape (images, 3, size, size), and labels, shape (images,).
    """
    images, labels = read_cifar10(folder, split, count, seed)
    processor = cifar10_processor(size)
    pixels = [processor(images=image, return_tensors="pt")["pixel_values"] for image in images]
    return torch.cat(pixels), torch.tensor(labels)


def cifar10_processor(size: int = CIFAR10_PIXELS) -> ViTImageProcessorPil:
    """The image processor of DINOv2 for images of so many pixels: bicubic, ImageNet's mean and deviation."""
    return ViTImageProcessorPil(
        size={"height": size, "width": size},
        resample=3,  # bicubic
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def read_cifar10(folder: Path, split: str, count: int | None = None, seed: int = 0):
    """CIFAR-10 as it is: Pillow's images, and labels; in the order of the files' names, or `count` drawn at random."""
    from PIL import Image

    path = Path(folder) / CIFAR10_ARCHIVE
    if not path.is_file():
        raise SystemExit(
            f"no file {path}: give the folder of that archive, which holds cifar/train/CLASS/*.jpg and "
            f"cifar/test/CLASS/*.jpg; CLASS is one of {', '.join(CIFAR10_CLASSES)}."
        )
    with tarfile.open(path) as archive:
        files = {
            file.name: archive.extractfile(file).read()
            for file in archive
            if file.isfile() and Path(file.name).parts[-3] == split
        }
    if not files:
        raise SystemExit(f"{path} holds no {split} images: they should be cifar/{split}/CLASS/*.jpg.")
    names = sorted(files)
    if count is not None:
        drawn = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed))[:count]
        names = [names[index] for index in drawn.tolist()]
    images = [Image.open(io.BytesIO(files[name])).convert("RGB") for name in names]
    return images, [CIFAR10_CLASSES.index(Path(name).parent.name) for name in names]


def _read_idx(path):
    """An IDX file: two zero bytes, 8 for unsigned bytes, the number of dimensions, their sizes, the data."""
    if not path.is_file():
        raise SystemExit(
            f"no file {path}: install the Debian package dataset-fashion-mnist, or give the folder of its four "
            f"*-ubyte.gz files as --data-dir."
        )
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    shape = np.frombuffer(content, ">u4", dimensions, offset=4).astype(int)
    data = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if content[:3] != b"\0\0\x08" or data.size != shape.prod():
        raise SystemExit(f"{path} is no IDX file of bytes, or cut short.")
    return data.reshape(shape).copy()
