"""Fashion scenes: garments of Fashion-MNIST pasted on textured canvases, with semantic masks and one of each garment.

    python examples/fashion_scenes.py path/to/scenes --backgrounds path/to/cifar10
    python examples/fashion_scenes.py path/to/scenes --train 1000 --test 200 --size 128 --seed 1

The folder gets `train` and `test`, each with `images/*.png`, `annotations/*.png` of the same names (class ids: 0 is the
background, 1 to 10 are garments) and `instances.json` as COCO has it (boxes, and masks as run lengths). Train scenes
are made of train garments and train photos, test scenes of test ones. A scene depends on its number and the seed alone.
Without --backgrounds, where CIFAR-10's photos are, canvases are waves of color.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from cifar10_tensors import load_bytes
from image_data import FASHION_CLASSES, read_fashion
from PIL import Image
from torch.utils.data import Dataset

from optimum_optin.files.folders import check_folder

CLASSES = ("background", *FASHION_CLASSES)
SIZE = 96  # pixels on a side
GARMENTS = (1, 5)  # in a scene, at least and at most
SHARES = (0.3, 0.65)  # of the canvas's side, that a garment's side may have
FAINTEST = 16  # of 255: a garment's pixels are at least that bright
VISIBLE = 0.6  # share of a garment's pixels that others leave uncovered, at least
_TRIES = 10  # to find a place for a garment


@dataclass(frozen=True)
class Scene:
    """One scene, with instances numbered from 1 in the order in which they were pasted; 0 is the background.

    Args:
        image: bytes, shape (size, size, 3).
        instances: whose each pixel is, shape (size, size).
        classes: class id of each instance, from 1 to 10.
    """

    image: np.ndarray
    instances: np.ndarray
    classes: tuple[int, ...]

    @property
    def semantic(self) -> np.ndarray:
        """Class id of each pixel, bytes of shape (size, size)."""
        return np.array((0, *self.classes), np.uint8)[self.instances]


class FashionScenes(Dataset):
    """Scenes by number, made when they are asked for.

    Args:
        split: "train" or "test".
        count: how many scenes.
        size: pixels on a side.
        seed: of all draws.
        garments: in a scene, at least and at most.
        shares: of the canvas's side, that a garment's side may have, at least and at most.
        fashion_dir: folder of Fashion-MNIST's files (default: of the Debian package).
        cifar10_dir: folder of cifar10_jpeg.tar.xz (default: canvases without photos).
    """

    def __init__(
        self,
        split: str,
        count: int,
        size: int = SIZE,
        *,
        seed: int = 0,
        garments: tuple[int, int] = GARMENTS,
        shares: tuple[float, float] = SHARES,
        fashion_dir: Path | None = None,
        cifar10_dir: Path | None = None,
    ):
        self.images, self.labels = read_fashion(split, fashion_dir)
        self.photos = None if cifar10_dir is None else load_bytes(cifar10_dir, split)[0].numpy()
        self.count, self.size, self.garments, self.shares = count, size, garments, shares
        self.entropy = (seed, ("train", "test").index(split))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        if not 0 <= index < self.count:
            raise IndexError(f"scene {index} of {self.count}")
        random = np.random.default_rng((*self.entropy, index))
        image = waves(random, self.size) if self.photos is None else photo(random, self.size, self.photos)
        wanted = random.integers(*self.garments, endpoint=True)
        drawn = random.integers(len(self.labels), size=wanted)
        sides = (self.size * random.uniform(*self.shares, wanted)).round().astype(int)
        return paste(random, image, self.images[drawn], self.labels[drawn], sides)


def paste(
    random: np.random.Generator, canvas: np.ndarray, garments: np.ndarray, labels: np.ndarray, sides: np.ndarray
) -> Scene:
    """A scene of these garments, with so many pixels on a side; those that would cover others too much are left out."""
    image, size = canvas.astype(np.float32), len(canvas)
    instances = np.zeros((size, size), np.int64)
    areas, classes = [], []
    for garment, label, side in zip(garments, labels, sides, strict=True):
        brightness, mask = _enlarged(garment, side, mirror=random.random() < 0.5)
        tint = random.uniform(0.35, 1, 3)
        for _ in range(_TRIES):
            y, x = random.integers(0, size - side, 2, endpoint=True)
            window = (slice(y, y + side), slice(x, x + side))
            covered = np.where(mask, len(classes) + 1, instances[window])
            after = instances.copy()
            after[window] = covered
            left = np.bincount(after.ravel(), minlength=len(classes) + 2)[1:-1]
            if mask.any() and all(left >= VISIBLE * np.array(areas)):
                # A black garment is still lighter than black, so that it shows.
                color = 255 * (0.15 + 0.85 * brightness[..., None]) * tint
                image[window] = np.where(mask[..., None], color, image[window])
                instances = after
                areas.append(int(mask.sum()))
                classes.append(int(label) + 1)
                break
    noisy = image + random.normal(0, 4, image.shape)
    return Scene(noisy.clip(0, 255).astype(np.uint8), instances, tuple(classes))


def photo(random: np.random.Generator, size: int, photos: np.ndarray) -> np.ndarray:
    """A canvas of four photos of shape (3, 32, 32), or a quarter of that enlarged, in weaker contrast."""
    drawn = photos[random.integers(len(photos), size=4)].transpose(0, 2, 3, 1)
    mosaic = np.concatenate([np.concatenate(drawn[:2], 1), np.concatenate(drawn[2:], 1)], 0)  # (64, 64, 3)
    side = random.integers(24, 64, endpoint=True)
    y, x = random.integers(0, 64 - side, 2, endpoint=True)
    part = Image.fromarray(mosaic[y : y + side, x : x + side]).resize((size, size), Image.Resampling.BILINEAR)
    return 64 + 0.5 * np.asarray(part, np.float32)


def waves(random: np.random.Generator, size: int) -> np.ndarray:
    """A canvas of three plane waves in random directions and colors."""
    rows, columns = np.mgrid[:size, :size] / size
    canvas = np.full((size, size, 3), 128.0)
    for _ in range(3):
        down, right = random.uniform(-12, 12, 2)
        wave = np.sin(2 * np.pi * (down * rows + right * columns + random.random()))
        canvas += wave[..., None] * random.uniform(-32, 32, 3)
    return canvas


def write(scenes: FashionScenes, folder: Path) -> None:
    """Write scenes as images, annotations of the same names, and COCO's JSON."""
    coco = {"images": [], "annotations": [], "categories": []}
    coco["categories"] = [{"id": number, "name": name} for number, name in enumerate(CLASSES) if number]
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for number in range(len(scenes)):
        scene, name = scenes[number], f"{number:06d}.png"
        Image.fromarray(scene.image).save(folder / "images" / name)
        Image.fromarray(scene.semantic).save(folder / "annotations" / name)
        coco["images"].append({"id": number, "file_name": name, "width": scenes.size, "height": scenes.size})
        for instance, label in enumerate(scene.classes, start=1):
            entry = {"id": len(coco["annotations"]) + 1, "image_id": number, "category_id": label, "iscrowd": 0}
            coco["annotations"].append({**entry, **_shape(scene.instances == instance)})
    (folder / "instances.json").write_text(json.dumps(coco), encoding="utf-8")


def run_lengths(mask: np.ndarray) -> list[int]:
    """How many pixels in turn are not of the mask, are, are not ..., column by column, as COCO counts them."""
    pixels = mask.ravel(order="F")
    changes = np.flatnonzero(np.diff(pixels)) + 1
    ends = [*changes.tolist(), len(pixels)]
    counts = np.diff([0, *ends]).tolist()
    return [0, *counts] if pixels[0] else counts


def _enlarged(garment, side, mirror):
    """Brightness from 0 to 1 and mask of a garment, each of shape (side, side)."""
    garment = garment[:, ::-1] if mirror else garment
    brightness = Image.fromarray(garment).resize((side, side), Image.Resampling.BILINEAR)
    solid = np.where(garment >= FAINTEST, 255, 0).astype(np.uint8)
    mask = Image.fromarray(solid).resize((side, side), Image.Resampling.BILINEAR)
    return np.asarray(brightness, np.float32) / 255, np.asarray(mask) > 127


def _shape(mask):
    """Box, area and run lengths of an instance."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    box = [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
    return {"bbox": box, "area": int(mask.sum()), "segmentation": {"size": [*mask.shape], "counts": run_lengths(mask)}}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="to write into")
    parser.add_argument("--train", type=int, default=200, help="scenes (default: %(default)s)")
    parser.add_argument("--test", type=int, default=200, help="scenes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=SIZE, help="pixels on a side (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backgrounds", type=Path, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--fashion-dir", type=Path, help="folder of the IDX files (default: of the Debian package)")
    arguments = parser.parse_args()
    folder = check_folder(arguments.folder)
    for split, count in (("train", arguments.train), ("test", arguments.test)):
        scenes = FashionScenes(
            split,
            count,
            arguments.size,
            seed=arguments.seed,
            fashion_dir=arguments.fashion_dir,
            cifar10_dir=arguments.backgrounds,
        )
        write(scenes, folder / split)
        print(f"{count} {split} scenes in {folder / split}")


if __name__ == "__main__":
    main()
