"""The evidence behind the scoring defaults: one field changed at a time, accuracy after pruning.

    python examples/benchmarks/defaults.py reactions
    python examples/benchmarks/defaults.py sentences --glue-dir path/to/glue

Metrics are taken on development rows that are neither calibration nor evaluation data: rows of the calibration
part (reactions) and of STS-B's train split (sentences). Mean over the seeds.
"""

import argparse
import json
import statistics
from pathlib import Path

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig

OUTPUT_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)
VARIANTS = (
    {},
    {"probes": 32},
    {"probes": 64},
    {"probes": 256},
    {"batch_size": 4, "probes": 256},
    {"batch_size": 16, "probes": 64},
    {"rows": 16},
    {"rows": 256},
    {"temperature": 4.0},
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.6, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("outputs/defaults"))
    parser.add_argument("--scorer", default="gauss_newton", help="(default: %(default)s)")
    parser.add_argument("--compensation", default="none")
    parser.add_argument("--weights", type=float, nargs="+", help="sweep only the output term's weight, over these")
    arguments = parser.parse_args()
    fixed = {"scorer": arguments.scorer, "compensation": arguments.compensation, "search": "ranked"}

    task = load_task(arguments.model, arguments.glue_dir, hold_out=True)
    pruner, evaluate = task.pruner, task.development
    print(f"dense {evaluate(pruner.model):.2f}", flush=True)
    table = {}
    for variant in VARIANTS[:1] if arguments.weights else VARIANTS:
        # The output term's weight needs no new scores, so it is swept where they are the default's.
        weights = (arguments.weights or OUTPUT_WEIGHTS) if not variant else (OptinConfig().output_weight,)
        metrics = {weight: {flops: [] for flops in arguments.flops} for weight in weights}
        for seed in arguments.seeds:
            scores = pruner.score(task.calibration, OptinConfig(**variant, **fixed, seed=seed))
            for weight in weights:
                config = OptinConfig(**variant, **fixed, seed=seed, output_weight=weight)
                for flops in arguments.flops:
                    metrics[weight][flops].append(evaluate(pruner.prune(scores=scores, config=config, flops=flops)))
        for weight in weights:
            name = json.dumps({**variant, "output_weight": weight})
            table[name] = {flops: statistics.mean(values) for flops, values in metrics[weight].items()}
            print(name, {flops: round(value, 2) for flops, value in table[name].items()}, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{arguments.model}-{arguments.scorer}-{arguments.compensation}.json"
    file.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
