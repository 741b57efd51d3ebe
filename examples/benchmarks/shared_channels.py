"""Convolutional networks: scores of channels that several convolutions read, times some factors, and what trials say.

    python examples/benchmarks/shared_channels.py resnet20 --weights path/to/resnet-cifar10 --data-dir path/to/cifar10

For each factor, the cut of the ranked search. One line for each: divergence of a trial refit, on the held-out eighth of
the calibration data alone and on half of them, as far as the trial has not seen it; and of the whole refit, with
agreement and accuracy, on 5,000 other train images. The test images choose nothing.
"""

import argparse
import copy
import json
from dataclasses import replace
from pathlib import Path

from convolution_refit import BATCH, DEPTHS, OTHERS, figures, load, load_pixels, logits_of

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import dense_passes
from optimum_optin.readiness import proved_groups
from optimum_optin.search.candidates import ranked
from optimum_optin.search.divergence import measure_divergence
from optimum_optin.search.trials import STRENGTH

PART = 8  # the trials of `optimum_optin.search.trials` are refitted on this part


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=DEPTHS)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.7, 0.6])
    parser.add_argument("--factors", type=float, nargs="+", default=[1, 1.5, 2, 4, 1e6], help="1e6 keeps all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samples", type=int, default=2000, help="train images to fit on (default: %(default)s)")
    arguments = parser.parse_args()
    model = load(DEPTHS[arguments.model], arguments.weights)
    pixels, labels = load_pixels(arguments.data_dir, "train", arguments.samples + OTHERS, arguments.seed)
    fit, others = pixels[: arguments.samples], (pixels[arguments.samples :], labels[arguments.samples :])
    config = OptinConfig(num_samples=len(fit), batch_size=BATCH, seed=arguments.seed)
    scores = OptinPruner.from_model(model, {"pixel_values": fit[:2]}).score(fit, config)
    groups, calibration = proved_groups(model, config), scores.calibration
    held_out = [*range(0, len(calibration), PART)]
    refitted = [index for index in range(len(calibration)) if index not in held_out]
    tried = refitted[: max(1, len(refitted) // PART)]
    half = [*held_out, *(index for index in refitted if index not in tried)][: len(calibration) // 2]
    starts, dense = dense_passes(model, groups, calibration, config), logits_of(model, others[0])
    for budget in arguments.budgets:
        asked = replace(config, flops=budget)
        options = [ranked(model, groups, times(factor, scores, groups), asked) for factor in arguments.factors]
        masks = [each.masks for each in options]

        trials, whole = (cuts(model, groups, masks) for _ in range(2))
        refit(model, trials, groups, [starts[index] for index in tried], STRENGTH, masks=masks, rounds=1)
        refit(model, whole, groups, [starts[index] for index in refitted], masks=masks)
        eighths, halves = (
            measure_divergence(model, trials, groups, calibration.part(each)) for each in (held_out, half)
        )
        for factor, pruned, eighth, of_half in zip(arguments.factors, whole, eighths, halves, strict=True):
            line = {"model": arguments.model, "seed": arguments.seed, "budget": budget, "factor": factor}
            line |= {"trial, an eighth": eighth.distance, "trial, half": of_half.distance}
            print(json.dumps(line | figures(logits_of(pruned, others[0]), dense, others[1])), flush=True)


def times(factor, scores, groups):
    """Scores, those of units that several convolutions read multiplied by a factor."""
    shared = {group.key for group in groups if len(group.consumers) > 1}
    combined = scores.combine()
    term = {key: score * (factor if key in shared else 1) for key, score in combined.items()}
    return replace(scores, terms={"trajectory": term})


def cuts(model, groups, masks):
    """A copy of the model for each of several masks, cut."""
    models = [copy.deepcopy(model) for _ in masks]
    for each, mask in zip(models, masks, strict=True):
        rewrite(each, groups, mask)
    return models


if __name__ == "__main__":
    main()
