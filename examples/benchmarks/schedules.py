"""Schedules of token merging beside heads and neurons: how far trial cuts diverge, and how right they are.

    python examples/benchmarks/schedules.py fashion-vit
    python examples/benchmarks/schedules.py cifar10-dinov2 --image-dir path/to/cifar10 --flops 0.5

Every schedule that `merging="auto"` tries, on a model refitted on a part of the calibration data; accuracy is of
development images, which are held out of the calibration images.
"""

import argparse
from dataclasses import replace

from tasks import add_task_arguments, load_task
from trial_cuts import HELD_OUT, refitted

from optimum_optin import OptinConfig, find_groups
from optimum_optin.merging.hooks import attach_merging
from optimum_optin.search.candidates import ranked, schedules
from optimum_optin.search.divergence import measure_divergence
from optimum_optin.search.trials import STRENGTH


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.65, 0.5])
    parser.add_argument("--batches", type=int, default=28, help="that trial cuts are refitted on; of 8 images each")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    task = load_task(arguments.model, hold_out=True, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir)
    model, groups = task.pruner.model, find_groups(task.pruner.model)
    print(f"dense: {task.metric} {task.development(model):.1f}", flush=True)
    scores = task.pruner.score(task.calibration, OptinConfig(seed=arguments.seed, merging="auto"))
    calibration = scores.calibration
    held_out = calibration.part(range(0, len(calibration), HELD_OUT))
    starts = [start for index, start in enumerate(calibration.starts) if index % HELD_OUT]
    for flops in arguments.flops:
        config = replace(scores.config, flops=flops)
        for schedule in schedules(model, groups, scores, config):
            masks = ranked(model, groups, scores, config, schedule=schedule).masks
            (pruned,) = refitted(model, groups, [masks], starts[: arguments.batches], STRENGTH)
            if schedule is not None:
                attach_merging(pruned, find_groups(pruned), schedule)
            (found,) = measure_divergence(model, [pruned], groups, held_out)
            merges = list(schedule.merges.values()) if schedule else "none"
            print(
                f"{flops}, merges {merges}: divergence {found.distance:.4f}, agreement {found.agreement:.3f}, "
                f"{task.metric} {task.development(pruned):.1f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
