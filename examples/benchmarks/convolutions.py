"""Convolutional networks for CIFAR-10: accuracy against measured FLOPs, for several ways to choose channels.

    python examples/benchmarks/convolutions.py resnet20 --weights path/to/resnet-cifar10 --data-dir path/to/cifar10
    python examples/benchmarks/convolutions.py resnet56 ... --budgets 0.8 0.5 --seeds 0 1 2 --methods surgeon random
    python examples/benchmarks/convolutions.py vgg16 --data-dir path/to/cifar10 --methods surgeon --batches 1 8 64

Every cut is measured with and without refit; what `OptinPruner` makes, with our settings or the paper's, was saved
and loaded again. See channel_cuts.py. With `torch-pruning` (PyPI; `pip install --no-deps torch-pruning`), its magnitude
and Taylor importances rank the channels, too. The weights of VGG-16 are those of train_cifar_vgg.py.

One line for each cut. With `--batches`, there is one for each of these sizes and each cut that was loaded as well, with
the images per second of both networks: for that, take a machine that does nothing else.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path

from channel_cuts import METHODS, Cut, cuts
from timing import images_per_second

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.pricing.macs import count_macs

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder

import resnet_cifar
import vgg_cifar
from cifar10_tensors import accuracy, load_pixels

NETWORKS = {"resnet20": partial(resnet_cifar.load, 20), "resnet56": partial(resnet_cifar.load, 56)}
NETWORKS["vgg16"] = vgg_cifar.load
BATCH = 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=NETWORKS)
    parser.add_argument(
        "--weights", type=Path, help="folder of the weights; of VGG-16 by default where they were saved"
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=2000, help="train images (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=OptinConfig.probes, help="of our scores (default: %(default)s)")
    parser.add_argument("--paper-samples", type=int, default=16, help="that `paper` scores by (default: %(default)s)")
    parser.add_argument("--test-images", type=int, help="drawn with seed 0 (default: all)")
    parser.add_argument(
        "--batches", type=int, nargs="+", default=[], help="time our cuts with so many images in a pass"
    )
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    if arguments.weights is None and arguments.model != "vgg16":
        parser.error(f"{arguments.model} needs --weights, the folder of its checkpoint.")
    model = NETWORKS[arguments.model](*[arguments.weights] if arguments.weights else [])
    test = load_pixels(arguments.data_dir, "test", arguments.test_images)
    for seed in arguments.seeds:
        train = load_pixels(arguments.data_dir, "train", arguments.samples, seed)
        dense, renewed = (accuracy(each, *test) for each in (model, resnet_cifar.with_new_statistics(model, train[0])))
        print(f"seed {seed}: dense {dense:.4f}, statistics of {len(train[1])} train images {renewed:.4f}", flush=True)
        pruner = OptinPruner.from_model(model, train[0][:2])
        config = OptinConfig(num_samples=len(train[1]), batch_size=BATCH, probes=arguments.probes, seed=seed)
        choices = {"methods": arguments.methods, "budgets": arguments.budgets, "config": config}
        for cut in cuts(pruner, train, paper_samples=arguments.paper_samples, **choices):
            line = {
                "model": arguments.model,
                "seed": seed,
                **cut.line(count_macs(model, {"pixel_values": test[0][:1]})),
            }
            write(line | {"accuracy": accuracy(cut.model, *test)}, arguments.out)
            for entry in speeds(pruner, cut, arguments.batches, arguments.repeats):
                write({**line, **entry}, arguments.out)


def speeds(pruner: OptinPruner, cut: Cut, batches: list[int], repeats: int) -> list[dict]:
    """Figures of `images_per_second` for a cut that was saved and loaded, one for each size."""
    if cut.off is None:
        return []
    return [*images_per_second(pruner.model, cut.model, tokens=pruner.report.tokens, batches=batches, repeats=repeats)]


def write(line: dict, file: Path | None) -> None:
    """Print a result, and add it to a file of JSON lines if there is one."""
    text = json.dumps(line)
    print(text, flush=True)
    if file:
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{text}\n")


if __name__ == "__main__":
    main()
