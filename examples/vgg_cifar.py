"""VGG-16 with batch normalisation for CIFAR-10 (Simonyan & Zisserman 2014), as a plain module to prune.

Thirteen 3 x 3 convolutions and one linear, as networks for CIFAR-10 have it. The last of VGG's five poolings is a mean
over all pixels that are left, 2 x 2 of them, so that smaller images can be read as well. train_cifar_vgg.py trains it.
"""

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = "model.safetensors"
CACHE = Path.home() / ".cache" / "optimum-optin" / "cifar10-vgg"
STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16(nn.Module):
    """Logits of ten classes from pixel values of shape (images, 3, 32, 32)."""

    def __init__(self, classes: int = 10):
        super().__init__()
        layers, width = [], 3
        for number, stage in enumerate(STAGES):
            if number:
                layers.append(nn.MaxPool2d(2))
            for channels in stage:
                layers += [nn.Conv2d(width, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU()]
                width = channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, classes)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.classifier(self.features(pixel_values).mean((2, 3)))


def load(folder: Path = CACHE) -> VGG16:
    """The trained network in evaluation mode, from where train_cifar_vgg.py saved it."""
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise SystemExit(f"no file {file}: python examples/train_cifar_vgg.py --data-dir path/to/cifar10 makes it.")
    model = VGG16()
    model.load_state_dict(load_file(file))
    return model.eval()
