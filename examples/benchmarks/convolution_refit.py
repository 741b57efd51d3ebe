"""Convolutional networks: what each part of their refit is worth, on train images that it has not seen.

    python examples/benchmarks/convolution_refit.py resnet20 --weights path/to/resnet-cifar10 --data-dir path/to/cifar10

The same channels are cut every time, and refitted in several ways: sums whose other term comes late, rounds behind a
ReLU, and the head are left out or not. One line for each cut: divergence from the dense model, agreement with it, and
accuracy, on 5,000 train images. The test images choose nothing.
"""

import argparse
import copy
import importlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.comparing.losses import class_divergences
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import dense_passes
from optimum_optin.passes.course import find_course
from optimum_optin.readiness import proved_groups
from optimum_optin.search.candidates import ranked

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder

from cifar10_tensors import load_pixels
from resnet_cifar import load

compensation = importlib.import_module("optimum_optin.compensation.refit")
DEPTHS = {"resnet20": 20, "resnet56": 56}
BATCH, OTHERS = 100, 5000
WAYS = {  # whether late sums are found, rounds behind a ReLU, whether the head is refitted
    "none": (False, 1, False),
    "late sums": (True, 1, False),
    "late sums, rounds": (True, 3, False),
    "late sums, rounds, head": (True, 3, True),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=DEPTHS)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.7, 0.5])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=1000, help="train images to fit on (default: %(default)s)")
    arguments = parser.parse_args()
    model = load(DEPTHS[arguments.model], arguments.weights)
    pixels, labels = load_pixels(arguments.data_dir, "train", arguments.samples + OTHERS, arguments.seed)
    fit, others = pixels[: arguments.samples], (pixels[arguments.samples :], labels[arguments.samples :])
    pruner = OptinPruner.from_model(model, {"pixel_values": fit[:2]})
    config = OptinConfig(num_samples=len(fit), batch_size=BATCH, seed=arguments.seed)
    scores = pruner.score([{"pixel_values": each} for each in fit], config)
    groups = proved_groups(model, config)
    starts = dense_passes(model, groups, scores.calibration, config)
    dense = logits_of(model, others[0])
    for budget in arguments.budgets:
        masks = ranked(model, groups, scores, replace(config, flops=budget)).masks
        for way in arguments.ways:
            cut = copy.deepcopy(model)
            rewrite(cut, groups, masks)
            started = time.process_time()
            late, rounds, head = WAYS[way]
            with mock.patch.object(compensation, "find_course", finding(late, head)):
                compensation.refit(model, [cut], groups, starts, 1e-2, masks=[masks], rounds=rounds)
            line = {"model": arguments.model, "budget": budget, "way": way, "seconds": time.process_time() - started}
            print(json.dumps(line | figures(logits_of(cut, others[0]), dense, others[1])), flush=True)


def finding(late, head):
    """`find_course` without late joins, or without the head."""

    def find(*given):
        course = find_course(*given)
        stops = tuple(stop for stop in course.stops if head or not stop.is_head)
        gone = set() if late else {path for path, join in course.joins.items() if join.is_late}
        joins = {path: join for path, join in course.joins.items() if path not in gone}
        return replace(course, stops=stops, joins=joins, rectified=course.rectified - gone)

    return find


@torch.no_grad()
def logits_of(model, pixels):
    return torch.cat([model.eval()(part) for part in pixels.split(500)])


def figures(found, dense, labels):
    return {
        "divergence": float(class_divergences(found, dense, 1.0).mean()),
        "agreement": float((found.argmax(-1) == dense.argmax(-1)).float().mean()),
        "accuracy": float((found.argmax(-1) == labels).float().mean()),
    }


if __name__ == "__main__":
    main()
