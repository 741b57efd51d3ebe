"""EfficientNet-lite0 with ImageNet weights: how often a pruned network sees what the dense one sees.

    python examples/benchmarks/efficientnet.py --data-dir path/to/cifar10
    python examples/benchmarks/efficientnet.py ... --budgets 0.9 0.8 --methods surgeon --seeds 0 --batches 1 8

Pruned on photos of CIFAR-10's train split, enlarged to 224 pixels, without labels; measured on photos of its test
split. Which of ImageNet's classes is right is not known of these, so agreement is counted: how often the first of all
1,000 classes is the dense network's, how often the dense one's is among the first five, and what share of its first
five is among the first five. Accuracy among CIFAR-10's classes stands beside it. channel_cuts.py has how cuts are made,
examples/efficientnet_lite.py the network and the packages that it takes. One line for each cut.
"""

import argparse
import sys
from pathlib import Path

import torch
from channel_cuts import cuts
from convolutions import speeds, write
from torch import Tensor, nn

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.pricing.macs import count_macs

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder

from efficientnet_lite import as_cifar10, load, load_photos

METHODS = ("surgeon", "random", "l1")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.8, 0.7])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=256, help="train photos (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=OptinConfig.probes, help="of our scores (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=16, help="of train photos (default: %(default)s)")
    parser.add_argument("--test-images", type=int, default=1000, help="test photos (default: %(default)s)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[], help="time our cuts with so many images in a pass"
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    model = load()
    pixels, labels = load_photos(arguments.data_dir, "test", arguments.test_images)
    expected = logits_of(model, pixels)
    print(f"dense: accuracy among CIFAR-10's classes {accuracy(expected, labels):.4f}", flush=True)
    for seed in arguments.seeds:
        train = load_photos(arguments.data_dir, "train", arguments.samples, seed)
        pruner = OptinPruner.from_model(model, train[0][:1])
        macs = count_macs(model, {"inputs": train[0][:1]})
        sizes = {"num_samples": arguments.samples, "batch_size": arguments.batch_size, "probes": arguments.probes}
        config = OptinConfig(**sizes, seed=seed)
        for cut in cuts(pruner, train, methods=arguments.methods, budgets=arguments.budgets, config=config):
            found = logits_of(cut.model, pixels)
            line = {"model": "efficientnet-lite0", "seed": seed, **cut.line(macs)}
            write({**line, **agreement(found, expected), "accuracy": accuracy(found, labels)}, arguments.out)
            for entry in speeds(pruner, cut, arguments.batches, arguments.repeats):
                write({**line, **entry}, arguments.out)


@torch.no_grad()
def logits_of(model: nn.Module, pixels: Tensor, batch_size: int = 50) -> Tensor:
    """Logits of ImageNet's classes, shape (images, 1000)."""
    return torch.cat([model.eval()(part) for part in pixels.split(batch_size)])


def agreement(found: Tensor, expected: Tensor) -> dict[str, float]:
    """How alike the first classes of two networks are, from logits of shape (images, classes)."""
    first, five, expected_five = expected.argmax(-1, keepdim=True), found.topk(5).indices, expected.topk(5).indices
    shared = (five[:, :, None] == expected_five[:, None, :]).any(1)  # (images, 5): of the expected ones
    return {
        "same_first": float((five[:, :1] == first).float().mean()),
        "first_in_five": float((five == first).any(1).float().mean()),
        "shared_five": float(shared.float().mean()),
    }


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of images whose most probable class of CIFAR-10 is right."""
    return float((as_cifar10(logits).argmax(-1) == labels).float().mean())


if __name__ == "__main__":
    main()
