"""What scoring and a first cut take, in plain forward passes of the calibration data: processor time, side by side.

    python examples/benchmarks/passes.py reactions      # a real 12 x 256 BERT
    python examples/benchmarks/passes.py bert-base      # BERT-base shape, random weights

Every round runs all calibration batches once, scores, runs them again, cuts, and runs them again; each stage is divided
by the mean of the two plain runs around it. The proof of the architecture, which is made once for a model, comes before
the first round. Memory is the process's peak above the loaded model, in MB, after each stage of the first round.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import psutil
import torch
from speed import load, peak_bytes

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.running.forward import call_model
from optimum_optin.running.freezing import frozen


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["reactions", "bert-base"])
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--samples", type=int, default=OptinConfig().num_samples)
    parser.add_argument("--output", type=Path, default=Path("outputs/passes"))
    arguments = parser.parse_args()

    model, data, tokenizer = load(arguments.model)
    config = OptinConfig(flops=arguments.flops, num_samples=arguments.samples)
    pruner = OptinPruner(model, tokenizer, config)
    batches = calibration_batches(data, model, tokenizer, num_samples=config.num_samples, batch_size=config.batch_size)
    pruner.check()
    rounds, memory = [], {}
    run_plainly(model, batches)  # to warm up
    for _ in range(arguments.rounds):
        loaded = psutil.Process().memory_info().rss
        stages = {"before": timed(lambda: run_plainly(model, batches))[0]}
        stages["score"], scores = timed(lambda: pruner.score(data))
        memory.setdefault("score", (peak_bytes() - loaded) / 1e6)
        stages["between"] = timed(lambda: run_plainly(model, batches))[0]
        stages["cut"] = timed(lambda scores=scores: pruner.prune(scores=scores))[0]
        memory.setdefault("cut", (peak_bytes() - loaded) / 1e6)
        stages["after"] = timed(lambda: run_plainly(model, batches))[0]
        rounds.append(stages)
        print({name: round(seconds, 2) for name, seconds in stages.items()}, flush=True)
    ratios = {
        "score": [each["score"] / (each["before"] + each["between"]) * 2 for each in rounds],
        "cut": [each["cut"] / (each["between"] + each["after"]) * 2 for each in rounds],
    }
    result = {
        "model": arguments.model,
        "samples": arguments.samples,
        "threads": torch.get_num_threads(),
        "plain_seconds": statistics.median(each["between"] for each in rounds),
        "passes": {stage: statistics.median(values) for stage, values in ratios.items()},
        "spread": {stage: [min(values), max(values)] for stage, values in ratios.items()},
        "peak_above_loaded_mb": memory,
    }
    print(json.dumps(result, indent=2))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.model}.json").write_text(json.dumps(result, indent=2) + "\n")


def timed(work):
    """Processor seconds of a piece of work, and what it returns."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


@torch.no_grad()
def run_plainly(model, batches):
    """One forward pass of every batch."""
    with frozen(model):
        for batch in batches:
            call_model(model, batch)


if __name__ == "__main__":
    main()
