"""What multiples of a number of neurons cost: accuracy of the model reloaded from disk, by multiple and seed.

    python examples/benchmarks/multiples.py reactions

A seed's units are scored once. Every figure is of evaluation rows, which calibration never saw.
"""

import argparse
import tempfile
from pathlib import Path

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--multiples", type=int, nargs="+", default=[1, 8, 64], help="of neurons; 1 for any number")
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()

    task = load_task(arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint)
    print("dense", measured(task, task.pruner.model), flush=True)
    for seed in arguments.seeds:
        scores = task.pruner.score(task.calibration, OptinConfig(seed=seed))
        for multiple in arguments.multiples:
            config = OptinConfig(seed=seed, flops=arguments.flops, round_to={"neurons": multiple})
            with tempfile.TemporaryDirectory() as folder:
                pruned = task.pruner.prune(scores=scores, config=config, save_dir=Path(folder) / "pruned")
                reloaded = type(pruned).from_pretrained(Path(folder) / "pruned")
            report = task.pruner.report
            numbers = [roles["neurons"]["kept"] for roles in report.layers.values()]
            assert all(number % multiple == 0 for number in numbers)
            figures = measured(task, reloaded.eval()), report.divergence.distance, report.flops_achieved
            print(f"seed {seed}, multiples of {multiple}:", *figures, numbers, flush=True)


def measured(task, model):
    """The metric by split."""
    return {split: measure(model) for split, measure in task.evaluation.items()}


if __name__ == "__main__":
    main()
