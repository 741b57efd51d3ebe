"""Convolutional networks: accuracy against measured FLOPs, for several ways to choose channels, with and without refit.

    python examples/benchmarks/convolutions.py resnet20 --weights path/to/resnet-cifar10 --data-dir path/to/cifar10
    python examples/benchmarks/convolutions.py resnet56 ... --budgets 0.8 0.5 --seeds 0 1 2 --methods surgeon random

Every method removes the channels that our groups hold, under the same budgets, and is given the same train images.
With `torch-pruning` (PyPI; `pip install --no-deps torch-pruning`), its magnitude and Taylor importances rank them, too,
over all layers at once, as its global pruning does; Taylor's takes the labels of the train images. Our own cuts are
saved and loaded again before they are measured. One line for each cut; nothing is trained.
"""

import argparse
import copy
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from optimum_optin import OptinConfig, OptinPruner, load_pruned
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import dense_passes
from optimum_optin.readiness import proved_groups
from optimum_optin.search.macs import count_macs, total_cost

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder

from cifar10_tensors import accuracy, load_pixels
from resnet_cifar import load, with_new_statistics

DEPTHS = {"resnet20": 20, "resnet56": 56}
BATCH = 100


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=DEPTHS)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    parser.add_argument("--methods", nargs="+", choices=["surgeon", *RANKINGS], default=["surgeon", *RANKINGS])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=2000, help="train images (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    model = load(DEPTHS[arguments.model], arguments.weights)
    test = load_pixels(arguments.data_dir, "test")
    for seed in arguments.seeds:
        train = load_pixels(arguments.data_dir, "train", arguments.samples, seed)
        dense, renewed = (accuracy(each, *test) for each in (model, with_new_statistics(model, train[0])))
        print(f"seed {seed}: dense {dense:.4f}, statistics of {len(train[1])} train images {renewed:.4f}", flush=True)
        for found in cuts(model, train, arguments, seed):
            pruned = found.pop("pruned")
            line = {"model": arguments.model, "seed": seed, **found, "accuracy": accuracy(pruned, *test)}
            line["flops"] = count_macs(pruned, {"pixel_values": test[0][:1]}) / count_macs(
                model, {"pixel_values": test[0][:1]}
            )
            print(json.dumps(line), flush=True)
            if arguments.out:
                with arguments.out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")


def cuts(model, train, arguments, seed):
    """Every cut by every method, with and without refit, as dicts."""
    pruner = OptinPruner.from_model(model, {"pixel_values": train[0][:2]})
    config = OptinConfig(num_samples=len(train[1]), batch_size=BATCH, seed=seed)
    scores = pruner.score([{"pixel_values": each} for each in train[0]], config)
    groups, calibration = proved_groups(model, config), scores.calibration
    starts = dense_passes(model, groups, calibration, config)

    def cost_of(masks):
        return total_cost(model, groups, scores.tokens, masks=masks)

    for method in arguments.methods:
        if method == "surgeon":
            yield from ours(pruner, model, scores, arguments.budgets)
            continue
        generator = torch.Generator().manual_seed(seed)
        importances, everywhere = RANKINGS[method](model, groups, train, generator)
        for budget in arguments.budgets:
            masks = masks_within(budget, importances, everywhere, cost_of)
            cut = copy.deepcopy(model)
            rewrite(cut, groups, masks)
            yield {"method": method, "refit": False, "budget": budget, "pruned": cut}
            refitted = copy.deepcopy(cut)
            refit(model, [refitted], groups, starts, masks=[masks])
            yield {"method": method, "refit": True, "budget": budget, "pruned": refitted}


def ours(pruner, model, scores, budgets):
    """Cuts by the surgeon's scores, saved and loaded again."""
    for budget in budgets:
        for compensation in ("ridge", "none"):
            started = time.perf_counter()
            search = "measured" if compensation == "ridge" else "ranked"
            config = replace(scores.config, flops=budget, compensation=compensation, search=search)
            with tempfile.TemporaryDirectory() as folder:
                pruner.prune(config=config, scores=scores, save_dir=folder)
                seconds = time.perf_counter() - started
                loaded = load_pruned(lambda: copy.deepcopy(model), folder)
            refits = compensation == "ridge"
            yield {"method": "surgeon", "refit": refits, "budget": budget, "seconds": seconds, "pruned": loaded}


def masks_within(budget, importances, everywhere, cost_of):
    """The most units whose cost is within a share of the dense one's.

    Args:
        budget: the share.
        importances: group key -> one number for each unit.
        everywhere: whether every group keeps the same share of its units, or all compete.
        cost_of: the cost of masks.
    """
    ranks = dict(importances)
    if everywhere:
        ranks = {key: each.argsort().argsort().double() / len(each) for key, each in importances.items()}
    limits = torch.cat([*ranks.values()]).unique()
    dense = cost_of({key: torch.ones_like(each, dtype=torch.bool) for key, each in ranks.items()})
    low, high = 0, len(limits)  # all above limits[high - 1] alone is cheap enough
    while low < high:
        middle = (low + high) // 2
        if cost_of(kept(ranks, limits[middle])) <= budget * dense * (1 + 1e-9):
            high = middle
        else:
            low = middle + 1
    return kept(ranks, limits[min(low, len(limits) - 1)])


def kept(ranks, limit):
    """Masks of what lies at a limit or above, and the best of each group."""
    return {key: (each >= limit) | (each == each.max()) for key, each in ranks.items()}


def at_random(model, groups, train, generator):
    return {group.key: torch.rand(group.units, generator=generator) for group in groups}, True


def by_l1(model, groups, train, generator):
    """The L1 norm of the filters that write a channel (Li et al. 2017), the same share in every layer."""
    return {group.key: filters(model, group).abs().sum(1) for group in groups}, True


def filters(model, group):
    return model.get_submodule(group.producers[0].path).weight.detach().flatten(1)


def by_magnitude(model, groups, train, generator):
    import torch_pruning

    return by_torch_pruning(model, groups, torch_pruning.importance.GroupMagnitudeImportance(), train)


def by_taylor(model, groups, train, generator):
    import torch_pruning

    return by_torch_pruning(model, groups, torch_pruning.importance.GroupTaylorImportance(), train)


def by_torch_pruning(model, groups, importance, train):
    """An importance of `torch-pruning` for the channels of our groups, after a backward pass of the train images."""
    import torch_pruning

    model = copy.deepcopy(model).requires_grad_(True)
    for pixels, labels in zip(train[0].split(BATCH), train[1].split(BATCH), strict=True):
        nn.functional.cross_entropy(model(pixels), labels).backward()
    graph = torch_pruning.DependencyGraph().build_dependency(model, train[0][:1])
    found: dict[str, Tensor] = {}
    for group in groups:
        convolution = model.get_submodule(group.producers[0].path)
        theirs = graph.get_pruning_group(convolution, torch_pruning.prune_conv_out_channels, list(range(group.units)))
        found[group.key] = importance(theirs).detach()
    return found, False


RANKINGS = {"random": at_random, "l1": by_l1, "tp-magnitude": by_magnitude, "tp-taylor": by_taylor}

if __name__ == "__main__":
    main()
