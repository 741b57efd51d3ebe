"""Small files of random images in the layouts of Fashion-MNIST and of CIFAR-10."""

import gzip
import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from image_data import CIFAR10_ARCHIVE, CIFAR10_CLASSES


def write_fashion(folder):
    """20 train images and 10 test images, with every class; returns the folder."""
    random = np.random.default_rng(0)
    for name, count in (("train", 20), ("t10k", 10)):
        _write_idx(folder / f"{name}-images-idx3-ubyte.gz", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        _write_idx(folder / f"{name}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)
    return folder


def write_cifar10(folder):
    """An archive of JPEG files: two of every class in train, one in test; returns the folder."""
    image_module = pytest.importorskip("PIL.Image")
    random = np.random.default_rng(0)
    with tarfile.open(folder / CIFAR10_ARCHIVE, "w:xz") as archive:
        for split, count in (("train", 2), ("test", 1)):
            for name in [f"cifar/{split}/{label}/{index}.jpg" for label in CIFAR10_CLASSES for index in range(count)]:
                content = io.BytesIO()
                pixels = random.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                image_module.fromarray(pixels).save(content, "JPEG")
                member = tarfile.TarInfo(name)
                member.size = len(content.getvalue())
                archive.addfile(member, io.BytesIO(content.getvalue()))
    return folder


def _write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))
