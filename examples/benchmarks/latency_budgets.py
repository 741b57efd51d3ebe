"""Budgets of latency: how well they are kept, and whether the model is better than one of fewer FLOPs that is as fast.

    python examples/benchmarks/latency_budgets.py reactions
    python examples/benchmarks/latency_budgets.py fashion-vit --latency 0.5 --batch-size 8 --seeds 0 1 2

A seed's units are scored once. The budget of FLOPs of the other model is found by halving, until its cut takes as long
as the first one's. Both are refitted, saved and loaded again, and then timed beside the dense model; every figure is of
evaluation rows, which calibration never saw. One line for each seed.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig
from optimum_optin.evaluation.latency import latency_entry

HALVINGS = 5


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--backend", default="eager")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()

    task = load_task(
        arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir
    )
    pruner = task.pruner
    print("dense", measured(task, pruner.model), flush=True)
    for seed in arguments.seeds:
        fields = {"seed": seed, "num_samples": arguments.samples, "search": "ranked"}
        scores = pruner.score(task.calibration, OptinConfig(**fields))
        started = time.perf_counter()
        timed = OptinConfig(
            **fields,
            latency=arguments.latency,
            latency_batch_size=arguments.batch_size,
            latency_backend=arguments.backend,
        )
        pruner.plan(scores, config=timed)
        seconds = time.perf_counter() - started
        line = {"seed": seed, "timetable_s": round(seconds, 1)}
        line["by latency"] = pruned(task, scores, timed, arguments)
        line["by flops"] = pruned(
            task, scores, as_fast(pruner, scores, fields, line["by latency"], arguments), arguments
        )
        print(json.dumps(line), flush=True)


def as_fast(pruner, scores, fields, goal, arguments):
    """The configuration with a budget of FLOPs whose cut takes as long as a model that was measured."""
    low, high = 0.05, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        config = OptinConfig(**fields, flops=middle, compensation="none")
        cut = pruner.prune(scores=scores, config=config)
        entry = latency_entry(
            pruner.model,
            cut,
            tokens=scores.tokens,
            batch_size=arguments.batch_size,
            repeats=arguments.repeats,
        )
        low, high = (middle, high) if 1 / entry.speedup < goal["share of the time"] else (low, middle)
    return OptinConfig(**fields, flops=(low + high) / 2)


def pruned(task, scores, config, arguments):
    """A pruned model's figures, once it is saved and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        made = task.pruner.prune(task.calibration, scores=scores, config=config, save_dir=Path(folder) / "pruned")
        reloaded = type(made).from_pretrained(Path(folder) / "pruned").eval()
    entry = latency_entry(
        task.pruner.model,
        reloaded,
        tokens=scores.tokens,
        batch_size=arguments.batch_size,
        repeats=2 * arguments.repeats,
    )
    report = task.pruner.report
    return {
        "share of the time": round(1 / entry.speedup, 4),
        "dense_ms": round(entry.dense_ms, 2),
        "flops": round(report.flops_achieved, 4),
        "threads": entry.threads,
        **{split: round(figure, 2) for split, figure in measured(task, reloaded).items()},
    }


def measured(task, model):
    """The metric by split."""
    return {split: measure(model) for split, measure in task.evaluation.items()}


if __name__ == "__main__":
    main()
