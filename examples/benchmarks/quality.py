"""Accuracy against FLOPs kept: every scorer and simple baselines, with and without compensation.

    python examples/benchmarks/quality.py reactions
    python examples/benchmarks/quality.py sentences --glue-dir path/to/glue

Every figure is of the model reloaded from disk, on evaluation rows that calibration never saw. Results gather in a JSON
file; a run that was cut off goes on where it was. A table, and a plot if matplotlib is there, are written beside it.
"""

import argparse
import json
import statistics
import tempfile
from pathlib import Path

import torch
from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig, register_scorer

BASELINES = ("random", "magnitude", "activation")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--scorers", nargs="+", default=["gauss_newton", "surgeon", *BASELINES])
    parser.add_argument("--compensation", nargs="+", default=["ridge", "none"])
    parser.add_argument("--flops", type=float, nargs="+", default=[0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/quality"))
    arguments = parser.parse_args()

    task = load_task(arguments.model, arguments.glue_dir)
    arguments.output.mkdir(parents=True, exist_ok=True)
    file = arguments.output / f"{arguments.model}.json"
    results = json.loads(file.read_text()) if file.is_file() else {}
    if "dense" not in results:
        results["dense"] = {split: measure(task.pruner.model) for split, measure in task.evaluation.items()}
    for scorer in arguments.scorers:
        for seed in arguments.seeds:
            wanted = {
                f"{scorer}/{compensation}/{seed}/{flops}": (compensation, flops)
                for compensation in arguments.compensation
                for flops in arguments.flops
            }
            missing = {key: value for key, value in wanted.items() if key not in results}
            if missing:
                scores = task.pruner.score(task.calibration, OptinConfig(scorer=scorer, seed=seed))
            for key, (compensation, flops) in missing.items():
                config = OptinConfig(scorer=scorer, seed=seed, compensation=compensation, flops=flops)
                results[key] = prune_and_measure(task, scores, config)
                print(key, results[key], flush=True)
                file.write_text(json.dumps(results, indent=2) + "\n")
    (arguments.output / f"{arguments.model}.md").write_text(table(results, task.metric))
    plot(results, task.metric, arguments.output / f"{arguments.model}.png")


def prune_and_measure(task, scores, config):
    """Metrics by split of the model pruned, saved and loaded again, and the seconds that pruning took."""
    with tempfile.TemporaryDirectory() as folder:
        pruned = task.pruner.prune(scores=scores, config=config, save_dir=Path(folder) / "pruned")
        reloaded = type(pruned).from_pretrained(Path(folder) / "pruned")
    metrics = {split: measure(reloaded.eval()) for split, measure in task.evaluation.items()}
    return {**metrics, "seconds": sum(task.pruner.report.seconds.values())}


def curves(results, split):
    """(scorer, compensation) -> FLOPs -> metric of every seed."""
    lines = {}
    for key, value in results.items():
        if key != "dense":
            scorer, compensation, _, flops = key.split("/")
            lines.setdefault((scorer, compensation), {}).setdefault(float(flops), []).append(value[split])
    return lines


def table(results, metric):
    """Markdown tables, one for each split: mean over seeds, and the spread between the lowest and the highest."""
    parts = []
    for split, dense in results["dense"].items():
        lines = curves(results, split)
        budgets = sorted({flops for line in lines.values() for flops in line}, reverse=True)
        parts.append(f"{metric} on {split}; dense {dense:.1f}\n\n")
        parts.append("| scorer | compensation | " + " | ".join(f"{flops:g}" for flops in budgets) + " |\n")
        parts.append("| --- " * (2 + len(budgets)) + "|\n")
        for (scorer, compensation), line in lines.items():
            cells = [_cell(line[flops]) if flops in line else "" for flops in budgets]
            parts.append(f"| {scorer} | {compensation} | " + " | ".join(cells) + " |\n")
        parts.append("\n")
    return "".join(parts)


def _cell(values):
    return f"{statistics.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


def plot(results, metric, path):
    """A picture of the first split."""
    try:
        from matplotlib import pyplot
    except ImportError:
        print("no plot: pip install 'optimum-optin[plots]'")
        return
    split, dense = next(iter(results["dense"].items()))
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    axes.axhline(dense, color="grey", linewidth=1, label="dense")
    for (scorer, compensation), line in curves(results, split).items():
        budgets = sorted(line)
        means = [statistics.mean(line[flops]) for flops in budgets]
        axes.plot(
            budgets,
            means,
            marker="o",
            linestyle="-" if compensation == "ridge" else ":",
            label=f"{scorer}, {compensation}",
        )
    axes.set(xlabel="FLOPs kept (share of layer MACs)", ylabel=f"{metric} on {split}, %")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150, bbox_inches="tight")


@register_scorer("random")
def score_random(model, groups, batches, config):
    """Uniform random numbers."""
    generator = torch.Generator().manual_seed(config.seed)
    return {"trajectory": {group.key: torch.rand(group.units, generator=generator).double() for group in groups}}


@register_scorer("magnitude")
def score_magnitude(model, groups, batches, config):
    """Squared norm of the consumer's columns."""
    return {"trajectory": {group.key: _per_unit(group, _column_squares(model, group)) for group in groups}}


@register_scorer("activation")
def score_activation(model, groups, batches, config):
    """Squared norm of the consumer's columns times their inputs' mean square (in the manner of Wanda)."""
    squares = {group.key: 0 for group in groups}
    handles = []
    for group in groups:

        def add(module, args, key=group.key):
            squares[key] = squares[key] + args[0].flatten(0, 1).double().square().sum(0)

        handles.append(model.get_submodule(group.consumer).register_forward_pre_hook(add))
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    return {
        "trajectory": {
            group.key: _per_unit(group, _column_squares(model, group) * squares[group.key]) for group in groups
        }
    }


def _column_squares(model, group):
    return model.get_submodule(group.consumer).weight.detach().double().square().sum(0)


def _per_unit(group, columns):
    return columns.view(group.units, group.width).sum(1).cpu()


if __name__ == "__main__":
    main()
