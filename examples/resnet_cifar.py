"""ResNets for CIFAR-10 (He et al. 2015, Sec. 4.2) with trained weights, as plain modules to prune.

    python examples/resnet_cifar.py 20 --weights path/to/resnet-cifar10 --data-dir path/to/cifar10

Three stages of n blocks of two 3 x 3 convolutions with 16, 32 and 64 channels, 6n + 2 layers; shortcuts have no
parameters (option A): where a stage begins, every second pixel is taken and the new channels are zeros. The weights are
checkpoints with a `state_dict` whose names may begin with `module.`, files named resnetDEPTH*.th, which are read with
`weights_only=True`. The images here are JPEGs, which these models were not trained on: accuracy is given once as they
are, and once with batch norm's statistics estimated anew on train images.
"""

import argparse
import copy
from pathlib import Path

import torch
from cifar10_tensors import accuracy, load_pixels
from torch import Tensor, nn
from torch.nn.functional import pad, relu

CHANNELS = (16, 32, 64)


class Block(nn.Module):
    """Two convolutions beside a shortcut without parameters."""

    def __init__(self, channels_in: int, channels: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.added = stride, channels - channels_in

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1:
            shortcut = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.added // 2, self.added // 2))
        return relu(self.bn2(self.conv2(relu(self.bn1(self.conv1(x))))) + shortcut)


class ResNetCifar(nn.Module):
    """Logits of ten classes from pixel values of shape (images, 3, 32, 32)."""

    def __init__(self, depth: int, classes: int = 10):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth={depth} must be 6n + 2, with n blocks in each of three stages: 20, 32, 44, 56.")
        first, second, third = CHANNELS
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, first, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(first)
        self.layer1 = _stage(first, first, blocks, stride=1)
        self.layer2 = _stage(first, second, blocks, stride=2)
        self.layer3 = _stage(second, third, blocks, stride=2)
        self.linear = nn.Linear(third, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(pixel_values)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def load(depth: int, folder: Path) -> ResNetCifar:
    """The trained network of so many layers, in evaluation mode, from the one file resnetDEPTH*.th of a folder."""
    files = sorted(Path(folder).glob(f"resnet{depth}[-.]*th"))
    if len(files) != 1:
        raise SystemExit(f"{folder} has {len(files)} files named resnet{depth}-*.th or resnet{depth}.th, not one.")
    weights = torch.load(files[0], map_location="cpu", weights_only=True)["state_dict"]
    model = ResNetCifar(depth)
    model.load_state_dict({name.removeprefix("module."): weight for name, weight in weights.items()})
    return model.eval()


@torch.no_grad()
def with_new_statistics(model: nn.Module, pixels: Tensor, batch_size: int = 500) -> nn.Module:
    """A copy whose batch norms have the mean statistics of these images' batches; the weights stay."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean over all batches
    model.train()
    for part in pixels.split(batch_size):
        model(part)
    return model.eval()


def _stage(channels_in, channels, blocks, stride):
    first = Block(channels_in, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("depth", type=int, help="20 or 56, as there are weights")
    parser.add_argument("--weights", type=Path, required=True, help="folder of resnetDEPTH*.th")
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--train-images", type=int, default=2000, help="for statistics (default: %(default)s)")
    arguments = parser.parse_args()
    model = load(arguments.depth, arguments.weights)
    pixels, labels = load_pixels(arguments.data_dir, "test")
    print(f"ResNet-{arguments.depth}, {len(labels)} test images: accuracy {accuracy(model, pixels, labels):.4f}")
    train, _ = load_pixels(arguments.data_dir, "train", arguments.train_images)
    renewed = with_new_statistics(model, train)
    print(f"with batch norm's statistics of {len(train)} train images: {accuracy(renewed, pixels, labels):.4f}")


if __name__ == "__main__":
    main()
