"""How many calibration samples are enough, and how well divergence predicts accuracy: on development rows.

    python examples/benchmarks/calibration.py reactions
    python examples/benchmarks/calibration.py sentences --glue-dir path/to/glue

For every number of samples, seed and budget: the metric on development rows (neither calibration nor evaluation data),
what the plan predicted, and the divergence and agreement that the report measured.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--samples", type=int, nargs="+", default=[16, 64, 256, 512, 1024])
    parser.add_argument("--flops", type=float, nargs="+", default=[0.6, 0.4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("outputs/calibration"))
    arguments = parser.parse_args()

    task = load_task(arguments.model, arguments.glue_dir, hold_out=True, checkpoint=arguments.checkpoint)
    rows = [{"dense": task.development(task.pruner.model)}]
    arguments.output.mkdir(parents=True, exist_ok=True)
    for samples in arguments.samples:
        for seed in arguments.seeds:
            scores = task.pruner.score(task.calibration, OptinConfig(num_samples=samples, seed=seed))
            for flops in arguments.flops:
                rows.append({"samples": samples, "seed": seed, "flops": flops, **measured(task, scores, flops)})
                print(rows[-1], flush=True)
                (arguments.output / f"{arguments.model}.json").write_text(json.dumps(rows, indent=2) + "\n")


def measured(task, scores, flops):
    """Figures of the model pruned, saved and loaded again."""
    predicted = task.pruner.plan(scores, flops=flops).predicted
    with tempfile.TemporaryDirectory() as folder:
        pruned = task.pruner.prune(scores=scores, flops=flops, save_dir=Path(folder) / "pruned")
        reloaded = type(pruned).from_pretrained(Path(folder) / "pruned")
    report = task.pruner.report
    return {
        task.metric: task.development(reloaded.eval()),
        "predicted": predicted,
        "divergence": report.divergence.to_dict(),
        "seconds": sum(report.seconds.values()),
    }


if __name__ == "__main__":
    main()
