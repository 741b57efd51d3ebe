"""A recognizer of speech: error rates and agreement against FLOPs kept, for several ways to choose units.

    python examples/spoken_digits.py                        # once: the data
    python examples/train_tiny_ctc.py                       # once: the model
    python examples/benchmarks/speech.py --seeds 0 1 2

Calibration sounds are drawn from the train split by the seed; all figures are of the test split. Every method keeps the
same share of the MACs of all heads and neurons, within one unit. Each is measured with and without our refit:

- surgeon: our scores and search, saved, and loaded again before it is measured.
- random, magnitude: the same share of every layer; at random, or by the norm of what the consumers read.

`agreement` is the share of real frames at which the cut model's likeliest sign is the dense model's, `divergence` the
KL divergence between both, in nats. One line for each cut.
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
from channel_rankings import masks_within
from torch import nn
from transformers import AutoModelForCTC, PreTrainedModel

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.architectures.group import Masks
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.readiness import proved_groups
from optimum_optin.reading.sources import read_calibration
from optimum_optin.search.divergence import measure_divergence
from optimum_optin.search.macs import total_cost

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder
from spoken_digits import CACHE as DATA
from train_tiny_ctc import CACHE, load

METHODS = ("surgeon", "random", "magnitude")
TASK = "automatic-speech-recognition"


class Harness:
    """One seed's calibration data, and what all methods share."""

    def __init__(self, pruner: OptinPruner, sounds, config: OptinConfig):
        self.pruner, self.model, self.config = pruner, pruner.model, config
        self.scores = pruner.score(sounds, config)
        self.calibration = self.scores.calibration
        self.groups = proved_groups(self.model, config)
        self.starts = dense_passes(self.model, self.groups, self.calibration, config)

    def share(self, masks: Masks | None) -> float:
        """The MACs that masks keep."""
        return total_cost(self.model, self.groups, self.scores.tokens, masks=masks)

    def masks(self, method: str, budget: float) -> Masks:
        generator = torch.Generator().manual_seed(self.config.seed)
        found = {}
        for group in self.groups:
            (consumer,) = group.consumers
            columns = self.model.get_submodule(consumer.path).weight.double().square().sum(0)
            norms = columns.view(group.units, -1).sum(1)
            found[group.key] = torch.rand(group.units, generator=generator) if method == "random" else norms
        return masks_within(budget, found, True, self.share)

    def cut(self, method: str, budget: float, refitted: bool) -> tuple[PreTrainedModel, float]:
        """The cut model, and the share of MACs that it keeps."""
        if method == "surgeon":
            changes = {} if refitted else {"compensation": "none", "search": "ranked"}
            config = replace(self.config, flops=budget, **changes)
            with tempfile.TemporaryDirectory() as folder:
                self.pruner.prune(scores=self.scores, config=config, save_dir=Path(folder) / "pruned")
                cut = AutoModelForCTC.from_pretrained(Path(folder) / "pruned").eval()
            return cut, self.pruner.report.flops_achieved
        masks = self.masks(method, budget)
        cut = copy.deepcopy(self.model)
        rewrite(cut, self.groups, masks)
        if refitted:
            refit(self.model, [cut], self.groups, self.starts, masks=[masks])
        return cut, self.share(masks) / self.share(None)


def parameters(model: nn.Module) -> int:
    return sum(each.numel() for each in model.parameters())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=DATA, help="(default: %(default)s)")
    parser.add_argument("--model", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.7, 0.5, 0.3, 0.2])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=128, help="calibration sounds (default: %(default)s)")
    parser.add_argument("--test-samples", type=int, help="of the test split (default: all)")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    dense, processor = load(arguments.model)
    pruner = OptinPruner(dense, processor)
    sounds, test = (read_calibration(arguments.data_dir, split=split) for split in ("train", "test"))
    held_out = calibrate(dense, calibration_batches(test, dense, processor, num_samples=len(test)))

    def measured(model):
        options = {"data_dir": arguments.data_dir, "split": "test", "max_samples": arguments.test_samples}
        found = evaluate_model(model, processor, TASK, **options)["metrics"]
        (off,) = measure_divergence(dense, [model], pruner_groups, held_out)
        rates = {name: [round(each["value"], 4), round(each["error"], 4)] for name, each in found.items()}
        return rates | {"divergence": off.distance, "agreement": off.agreement}

    pruner_groups = proved_groups(dense, OptinConfig())
    print("dense:", json.dumps(measured(dense)), flush=True)
    for seed in arguments.seeds:
        harness = Harness(pruner, sounds, OptinConfig(num_samples=arguments.samples, seed=seed))
        for method in arguments.methods:
            for refitted in (True, False):
                for budget in arguments.budgets:
                    started = time.perf_counter()
                    cut, flops = harness.cut(method, budget, refitted)
                    line = {"seed": seed, "method": method, "refit": refitted, "budget": budget}
                    line |= {"flops": round(flops, 4), "parameters": parameters(cut) / parameters(dense)}
                    line |= {"seconds": round(time.perf_counter() - started, 1)} | measured(cut)
                    print(json.dumps(line), flush=True)
                    if arguments.out:
                        with arguments.out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
