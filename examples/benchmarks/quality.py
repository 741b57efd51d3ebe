"""Accuracy against FLOPs kept: every method, repaired by its own means, by our ridge compensation, or not at all.

    python examples/benchmarks/quality.py reactions
    python examples/benchmarks/quality.py sentences --glue-dir path/to/glue
    python examples/benchmarks/quality.py sst2 --glue-dir path/to/glue --checkpoint outputs/glue/sst2
    python examples/benchmarks/quality.py reactions --methods exact --scores exact=path/to/scores
    python examples/benchmarks/quality.py fashion-vit --methods default auto tokens constant magnitude random

Every figure is of the model reloaded from disk, on evaluation rows that calibration never saw. Results gather in a JSON
file; a run that was cut off goes on where it was. A table, and a plot if matplotlib is there, are written beside it.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from baselines import METHODS, Method, by_saved_scores, pose
from tasks import add_task_arguments, load_task

from optimum_optin.compensation.refit import compensate
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.modalities import modality_of
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.record import record_structure
from optimum_optin.storage.structure import structure_of

REPAIRS = ("ridge", "own", "none")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--methods", nargs="+", help="rows of the table in baselines.py; default: all that apply")
    parser.add_argument("--scores", nargs="+", default=[], metavar="NAME=FOLDER", help="methods from saved scores")
    parser.add_argument("--repairs", nargs="+", choices=REPAIRS, default=REPAIRS)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--samples", type=int, default=512, help="calibration samples; use another --output for others than 512"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/quality"))
    parser.add_argument("--development", action="store_true", help="measure on development rows, held out, instead")
    arguments = parser.parse_args()
    methods = METHODS | {
        name: Method(by_saved_scores(folder)) for name, folder in (pair.split("=", 1) for pair in arguments.scores)
    }

    task = load_task(
        arguments.model, arguments.glue_dir, arguments.development, arguments.checkpoint, arguments.image_dir
    )
    if arguments.development:
        task = replace(task, evaluation={"development": task.development})
    able = applicable(methods, modality_of(task.pruner.model).samples)
    names = arguments.methods or able
    if not set(names) <= set(able):
        parser.error(f"--methods for this model are {', '.join(able)}")
    results = Results(arguments.output / f"{arguments.model}{'_development' * arguments.development}.json")
    if "dense" not in results.values:
        results.add("dense", evaluate(task, task.pruner.model))
    for name in names:
        repairs = [repair for repair in arguments.repairs if repair != "own" or methods[name].own]
        for seed in arguments.seeds:
            keys = {
                flops: {repair: f"{name}/{repair}/{seed}/{flops}" for repair in repairs} for flops in arguments.flops
            }
            run(task, methods[name], seed, results.missing(keys), results, samples=arguments.samples)
    results.file.with_suffix(".md").write_text(table(results.values, methods, task.metric))
    plot(results.values, task.metric, results.file.with_suffix(".png"))


def applicable(methods, data):
    """Names of the methods for `"images"` or for `"texts"`."""
    return [name for name, method in methods.items() if method.only in (None, data)]


class Results:
    """Figures by key, `"method/repair/seed/flops"`, on disk as soon as they are known."""

    def __init__(self, file):
        self.file = file
        self.values = json.loads(file.read_text()) if file.is_file() else {}

    def add(self, key, value):
        print(key, value, flush=True)
        self.values[key] = value
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.values, indent=2) + "\n")

    def missing(self, keys):
        """FLOPs -> repair -> key, less what is there."""
        left = {
            flops: {repair: key for repair, key in by_repair.items() if key not in self.values}
            for flops, by_repair in keys.items()
        }
        return {flops: by_repair for flops, by_repair in left.items() if by_repair}


def run(task, method, seed, keys, results, *, samples=512):
    """Measure a method at one seed: `keys` are FLOPs -> repair -> key of the result."""
    if not keys:
        return
    problem = pose(task, seed, samples)
    cut, preparing = timed(method.prepare, problem)
    for flops, by_repair in keys.items():
        found, cutting = timed(cut, flops * problem.dense_cost)
        for repair, key in by_repair.items():
            pruned, repairing = timed(repaired, problem, found, repair)
            spent = {"prepare": preparing, "cut": cutting, "repair": repairing, "threads": torch.get_num_threads()}
            results.add(key, {**evaluate(task, reloaded(problem, found.masks, pruned)), **spent})


def evaluate(task, model):
    """Metrics by split."""
    return {split: measure(model) for split, measure in task.evaluation.items()}


def timed(work, *arguments):
    """What the work returns, and its seconds: by the clock, and of all threads together."""
    clock, processor = time.perf_counter(), time.process_time()
    value = work(*arguments)
    return value, {"clock": time.perf_counter() - clock, "processor": time.process_time() - processor}


def repaired(problem, cut, repair):
    """The pruned model after a repair."""
    if repair == "own":
        return cut.own()
    pruned = copy.deepcopy(problem.model)
    rewrite(pruned, problem.groups, cut.masks)
    if repair == "ridge":
        compensate(problem.model, pruned, problem.groups, problem.calibration)
    return pruned


def reloaded(problem, masks, pruned):
    """The pruned model, saved and loaded again."""
    pruned = copy.deepcopy(pruned)
    if not structure_of_model(pruned):  # the package's own models know theirs
        record_structure(pruned, structure_of(problem.groups, masks), problem.groups)
    with tempfile.TemporaryDirectory() as folder:
        pruned.save_pretrained(folder)
        return type(pruned).from_pretrained(folder).eval()


def curves(results):
    """(method, repair) -> FLOPs -> results of every seed."""
    lines = {}
    for key, value in results.items():
        if key != "dense":
            method, repair, _, flops = key.split("/")
            lines.setdefault((method, repair), {}).setdefault(float(flops), []).append(value)
    return lines


def table(results, methods, metric):
    """Markdown tables, one for each split: mean over seeds, and half the spread between lowest and highest.

    Seconds are of one budget's whole run, scores included unless they came from disk: processor time, which a busy
    machine changes least, of all threads together.
    """
    parts = []
    lines = curves(results)
    budgets = sorted({flops for line in lines.values() for flops in line}, reverse=True)
    for split, dense in results["dense"].items():
        parts.append(f"{metric} on {split}; dense {dense:.1f}\n\n")
        parts.append("| method | repair | labels | " + " | ".join(f"{flops:g}" for flops in budgets) + " | seconds |\n")
        parts.append("| --- " * (4 + len(budgets)) + "|\n")
        for (name, repair), line in lines.items():
            labels = "yes" if name in methods and methods[name].labels else "no"
            cells = [_cell([value[split] for value in line[flops]]) if flops in line else "" for flops in budgets]
            seconds = statistics.mean(_seconds(value) for values in line.values() for value in values)
            parts.append(f"| {name} | {repair} | {labels} | " + " | ".join(cells) + f" | {seconds:.0f} |\n")
        parts.append("\n")
    return "".join(parts)


def _cell(values):
    return f"{statistics.mean(values):.1f} ± {(max(values) - min(values)) / 2:.1f}"


def _seconds(value):
    return sum(value[stage]["processor"] for stage in ("prepare", "cut", "repair"))


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
    colors = {}
    for (name, repair), line in curves(results).items():
        budgets = sorted(line)
        means = [statistics.mean(value[split] for value in line[flops]) for flops in budgets]
        color = colors.setdefault(name, f"C{len(colors)}")
        axes.plot(budgets, means, _LINES[repair], marker="o", color=color, label=f"{name}, {repair}")
    axes.set(xlabel="FLOPs kept (share of layer MACs)", ylabel=f"{metric} on {split}, %")
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=150, bbox_inches="tight")


_LINES = {"ridge": "-", "own": "--", "none": ":"}


if __name__ == "__main__":
    main()
