"""What pruning costs with the default settings, stage by stage: seconds and peak memory.

    python examples/benchmarks/cost.py reactions      # a real 12 x 256 BERT
    python examples/benchmarks/cost.py bert-base      # BERT-base shape, random weights

Memory is what a stage adds to the process's peak over the loaded model, in MB.
"""

import argparse
import json
from pathlib import Path

import psutil
import torch
from speed import load, peak_bytes

from optimum_optin import OptinConfig, OptinPruner


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["reactions", "bert-base"])
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--output", type=Path, default=Path("outputs/cost"))
    arguments = parser.parse_args()

    model, data, tokenizer = load(arguments.model)
    pruner = OptinPruner(model, tokenizer, OptinConfig(flops=arguments.flops))
    loaded = psutil.Process().memory_info().rss
    scores = pruner.score(data)
    scored = peak_bytes()
    pruner.prune(scores=scores)
    result = {
        "model": arguments.model,
        "threads": torch.get_num_threads(),
        "seconds": pruner.report.seconds,
        "weights_mb": sum(parameter.nbytes for parameter in model.parameters()) / 1e6,
        "peak_above_loaded_mb": {"score": (scored - loaded) / 1e6, "prune": (peak_bytes() - loaded) / 1e6},
    }
    print(json.dumps(result, indent=2))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.model}.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
