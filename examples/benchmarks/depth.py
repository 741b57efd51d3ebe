"""What whole sublayers cost and save: accuracy of the model reloaded from disk, and milliseconds, by depth and seed.

    python examples/benchmarks/depth.py reactions

A seed's units are scored once. Every figure is of evaluation rows, which calibration never saw. Times are medians of
interleaved passes, as shares of the dense model's.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig
from optimum_optin.command_line.options import word_or_number


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--depths", type=word_or_number, nargs="+", default=["none", 2, 4, 8, "auto"])
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--shapes", type=int, nargs=2, action="append", help="batch and tokens of a timed pass")
    arguments = parser.parse_args()

    task = load_task(arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint)
    dense, shapes = task.pruner.model, arguments.shapes or [(1, 32), (1, 128), (8, 128)]
    print("dense", measured(task, dense), flush=True)
    for seed in arguments.seeds:
        scores = task.pruner.score(task.calibration, OptinConfig(seed=seed))
        models = {}
        for depth in arguments.depths:
            config = OptinConfig(seed=seed, flops=arguments.flops, depth=depth)
            with tempfile.TemporaryDirectory() as folder:
                pruned = task.pruner.prune(scores=scores, config=config, save_dir=Path(folder) / "pruned")
                models[depth] = type(pruned).from_pretrained(Path(folder) / "pruned").eval()
            report = task.pruner.report
            kept = {
                f"{layer}.{role}": each["kept"]
                for layer, roles in report.layers.items()
                for role, each in roles.items()
            }
            gone = [key for key, number in kept.items() if number == 0]
            figures = measured(task, models[depth]), report.divergence.distance, report.flops_achieved
            print(f"seed {seed}, depth {depth}:", *figures, gone, flush=True)
        for shape in shapes:
            print(f"seed {seed}, {shape[0]} x {shape[1]} tokens:", times(dense, models, *shape), flush=True)


def measured(task, model):
    """The metric by split."""
    return {split: measure(model) for split, measure in task.evaluation.items()}


@torch.no_grad()
def times(dense, models, samples, tokens, rounds=30):
    """Median time of a pass as a share of the dense model's, whose milliseconds come first."""
    batch = {
        "input_ids": torch.randint(5, 100, (samples, tokens)),
        "attention_mask": torch.ones(samples, tokens).long(),
    }
    seconds = {name: [] for name in ("dense", *models)}
    for _ in range(rounds):
        for name, model in {"dense": dense, **models}.items():
            started = time.perf_counter()
            model(**batch)
            seconds[name].append(time.perf_counter() - started)
    whole = statistics.median(seconds.pop("dense"))
    return [f"{1000 * whole:.1f} ms"] + [
        f"{name} {statistics.median(each) / whole:.3f}" for name, each in seconds.items()
    ]


if __name__ == "__main__":
    main()
