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
import json
import sys
import time
from pathlib import Path

from torch import nn
from transformers import AutoModelForCTC
from unit_methods import METHODS, Harness

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation.comparison import evaluate_model
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate
from optimum_optin.readiness import proved_groups
from optimum_optin.reading.sources import read_calibration
from optimum_optin.search.divergence import measure_divergence

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder
from spoken_digits import CACHE as DATA
from train_tiny_ctc import CACHE, load

TASK = "automatic-speech-recognition"


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
        harness = Harness(pruner, sounds, OptinConfig(num_samples=arguments.samples, seed=seed), AutoModelForCTC)
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
