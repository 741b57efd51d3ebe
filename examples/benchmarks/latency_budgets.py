"""Budgets of latency: how well they are kept, and whether the model is better than one of fewer FLOPs that is as fast.

    python examples/benchmarks/latency_budgets.py reactions
    python examples/benchmarks/latency_budgets.py fashion-vit --latency 0.5 --batch-size 8 --seeds 0 1 2
    python examples/benchmarks/latency_budgets.py reactions --backend onnx

A seed's units are scored once. The budget of FLOPs of the other model is found by halving, until its cut takes as long
as the first one's. Both are refitted, saved and loaded again, and then timed in turn with the dense model, each as the
backend runs it; the dense model was exported or compiled once. With `--backend onnx`, `off` is how far what ONNX
Runtime returns is from what the model returns (norm of the difference over the norm). Accuracy is that of the models in
eager mode on evaluation rows, which calibration never saw. One line for each seed.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig
from optimum_optin.inputs.probes import samples_of
from optimum_optin.programs.agreement import agreement
from optimum_optin.programs.onnx_files import OnnxSession, to_onnx
from optimum_optin.running.prepared import copy_of
from optimum_optin.timing.backends import check_backend, runner
from optimum_optin.timing.side_by_side import times_in_turn
from optimum_optin.timing.speedups import speedup_of

HALVINGS = 5


class Clock:
    """The dense model in a backend, ready to be timed in turn with others.

    Args:
        dense: the dense model.
        tokens: length of every sample.
        batch_size: samples of a forward pass.
        backend: a `latency_backend` of `OptinConfig`.
        repeats: turns.
    """

    def __init__(self, dense, tokens, *, batch_size, backend, repeats):
        self.batch, self.backend, self.repeats = samples_of(dense, tokens, batch_size), backend, repeats
        self.dense = self._prepared(dense)

    @torch.no_grad()
    def time(self, model, rounds=1):
        """A model's time as a share of the dense one's, with bounds, and the dense model's in milliseconds."""
        dense, times = times_in_turn([self.dense, self._prepared(model)], rounds * self.repeats)
        return speedup_of(times, dense), 1e3 * statistics.median(dense)

    @torch.no_grad()
    def _prepared(self, model):
        copied = copy_of(model, apart=False)  # `torch.compile` changes a model in place
        return runner(copied, self.batch, self.backend)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--latency", type=float, default=0.5)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--backend", choices=("eager", "compile", "onnx"), default="eager")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=25, help="turns of a trial; the final ones have twice as many")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, help="append the lines to a file, too")
    arguments = parser.parse_args()
    task = load_task(
        arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir
    )
    check_backend(arguments.backend, task.pruner.model.device)
    print("dense", measured(task, task.pruner.model), flush=True)
    for seed in arguments.seeds:
        line = {"seed": seed, "backend": arguments.backend, "batch_size": arguments.batch_size}
        line |= compared(task, seed, arguments)
        print(json.dumps(line), flush=True)
        if arguments.out:
            with arguments.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def compared(task, seed, arguments):
    """A seed's models by both budgets."""
    pruner, config = task.pruner, OptinConfig(seed=seed, num_samples=arguments.samples, search="ranked")
    scores = pruner.score(task.calibration, config)
    timing = {"latency_batch_size": arguments.batch_size, "latency_backend": arguments.backend}
    timed = replace(config, flops=None, latency=arguments.latency, **timing)
    started = time.perf_counter()
    pruner.plan(scores, config=timed)
    line = {"tokens": scores.tokens, "timetable_s": round(time.perf_counter() - started, 1)}
    options = {"batch_size": arguments.batch_size, "backend": arguments.backend, "repeats": arguments.repeats}
    clock = Clock(pruner.model, scores.tokens, **options)
    line["by latency"] = pruned(task, scores, timed, clock)
    flops = flops_of(pruner, scores, config, line["by latency"]["share of the time"], clock)
    line["by flops"] = pruned(task, scores, replace(config, flops=flops), clock)
    return line


def flops_of(pruner, scores, config, goal, clock):
    """The budget of FLOPs whose cut takes this share of the dense model's time."""
    low, high = 0.05, 1.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        cut = pruner.prune(scores=scores, config=replace(config, flops=middle, compensation="none"))
        share, _ = clock.time(cut)
        low, high = (middle, high) if share.median < goal else (low, middle)
    return (low + high) / 2


def pruned(task, scores, config, clock):
    """A pruned model's figures, once it is saved and loaded again."""
    with tempfile.TemporaryDirectory() as folder:
        made = task.pruner.prune(task.calibration, scores=scores, config=config, save_dir=Path(folder) / "pruned")
        reloaded = type(made).from_pretrained(Path(folder) / "pruned").eval()
    share, dense_ms = clock.time(reloaded, rounds=2)
    return {
        "share of the time": round(share.median, 4),
        "between": [round(share.low, 4), round(share.high, 4)],
        "dense_ms": round(dense_ms, 2),
        "flops": round(task.pruner.report.flops_achieved, 4),
        "threads": torch.get_num_threads(),
        **({"off": onnx_distance(reloaded, scores.tokens)} if clock.backend == "onnx" else {}),
        **{split: round(figure, 2) for split, figure in measured(task, reloaded).items()},
    }


def onnx_distance(model, tokens):
    """How far what ONNX Runtime returns is from what a model returns."""
    batch = samples_of(model, tokens, 2)  # of one sample, an export would know no other number
    with tempfile.TemporaryDirectory() as folder:
        session = OnnxSession(to_onnx(model, batch, Path(folder) / "model.onnx"))
        return agreement(model, session, [batch]).distance


def measured(task, model):
    """The metric by split."""
    return {split: measure(model) for split, measure in task.evaluation.items()}


if __name__ == "__main__":
    main()
