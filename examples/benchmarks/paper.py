"""The paper's own setting (`OptinConfig.paper()`) beside ours: one curve of accuracy against FLOPs kept.

    OMP_NUM_THREADS=1 python examples/benchmarks/paper.py reactions --samples 8
    OMP_NUM_THREADS=1 python examples/benchmarks/paper.py fashion-vit --samples 16

Exhaustive scores take a pass per unit and batch, so the paper's setting sees --samples samples; ours sees as many in
one row, and the default of 512 in another. The paper's masks with our refit on 512 samples show what of the difference
the refit makes. Every figure is of the model reloaded from disk, on test samples. Results gather in a JSON file, with
the exhaustive scores beside it; a run that was cut off goes on where it was.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch
from baselines import Cut, Method, by_default
from quality import Results, evaluate, run, table
from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig, OptinPruner, Scores
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.structure import masks_of

ROWS = ("paper", "refitted", "few", "ours")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--samples", type=int, default=8, help="that `exact` sees (default: %(default)s)")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, help="what to draw, in this order")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/paper"))
    arguments = parser.parse_args()

    task = load_task(
        arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir
    )
    place = arguments.output / f"{arguments.model}-{arguments.samples}-{arguments.seed}"
    results = Results(place.with_suffix(".json"))
    if "dense" not in results.values:
        results.add("dense", evaluate(task, task.pruner.model))
    config = OptinConfig.paper(num_samples=arguments.samples, seed=arguments.seed)
    paper, ours = Method(by_paper(task, config, place), own=True), Method(by_default(), own=True)
    few = f"ours-{arguments.samples}"
    rows = {  # name, method, repair, and how many samples it sees beside the scores
        "paper": ("paper", paper, "own", 512),
        "refitted": ("paper", paper, "ridge", 512),
        "few": (few, ours, "own", arguments.samples),
        "ours": ("ours", ours, "own", 512),
    }
    for name, method, repair, samples in (rows[row] for row in arguments.rows):
        keys = {flops: {repair: f"{name}/{repair}/{arguments.seed}/{flops}"} for flops in arguments.flops}
        run(task, method, arguments.seed, results.missing(keys), results, samples=samples)
    print(table(results.values, {name: method for name, method, *_ in rows.values()}, task.metric))


def by_paper(task, config, folder):
    """`OptinPruner` with the paper's setting: its own cut is what `prune` returns.

    Args:
        task: model and data.
        config: the setting; its samples are all that the scores see.
        folder: where the scores are, or will be.
    """

    def prepare(problem):
        pruner = OptinPruner(task.pruner.model, task.pruner.processor)
        if (folder / "optin_scores.json").is_file():
            scores = Scores.from_pretrained(folder)
            scores.check(pruner.model, config)
        else:
            scores = pruner.score(task.calibration, config)
            scores.save_pretrained(folder)
        print(f"exhaustive scores: {scores.seconds:.0f} s, {torch.get_num_threads()} threads", flush=True)

        def cut(budget):
            pruned = pruner.prune(scores=scores, config=replace(config, flops=budget / problem.dense_cost))
            return Cut(masks_of(structure_of_model(pruned), problem.groups), lambda: pruned)

        return cut

    return prepare


if __name__ == "__main__":
    main()
