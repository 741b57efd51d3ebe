"""How many minibatches need a probe of the trajectory: the metric of the reloaded model, by share and seed.

    python examples/benchmarks/trajectory_probes.py reactions
    python examples/benchmarks/trajectory_probes.py sst2 --glue-dir GLUE --shares 1 2

Every minibatch has a probe of the output; every one, every second (what the surgeon's scores do) or every fourth has
one of the trajectory beside it. Figures are of evaluation rows, which calibration never saw; seconds are of the
processor.
"""

import argparse
import tempfile
import time
from pathlib import Path
from unittest import mock

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig
from optimum_optin.scoring import surgeon


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--shares", type=int, nargs="+", default=[1, 2, 4], help="one in so many minibatches")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=OptinConfig().num_samples)
    arguments = parser.parse_args()

    task = load_task(
        arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir
    )
    print("dense", measured(task, task.pruner.model), flush=True)
    for seed in arguments.seeds:
        for share in arguments.shares:
            config = OptinConfig(seed=seed, num_samples=arguments.samples)
            started = time.process_time()
            with mock.patch.object(surgeon, "_probes_trajectory", one_in(share)):
                scores = task.pruner.score(task.calibration, config)
            seconds = time.process_time() - started
            for flops in arguments.flops:
                with tempfile.TemporaryDirectory() as folder:
                    pruned = task.pruner.prune(scores=scores, flops=flops, save_dir=Path(folder) / "pruned")
                    reloaded = type(pruned).from_pretrained(Path(folder) / "pruned").eval()
                found = measured(task, reloaded), task.pruner.report.divergence.distance
                print(
                    f"seed {seed}, one in {share}, {flops}:",
                    *found,
                    f"scored in {seconds:.1f} s of processor time",
                    flush=True,
                )


def one_in(share):
    """Which probes have one of the trajectory: those of each batch in turn."""
    return lambda probe, batches: (probe // batches + probe % batches) % share == 0


def measured(task, model):
    """The metric by split."""
    return {split: round(measure(model), 2) for split, measure in task.evaluation.items()}


if __name__ == "__main__":
    main()
