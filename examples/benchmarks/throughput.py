"""Images per second of pruned models, loaded again from disk, against the dense one, side by side in one run.

    python examples/benchmarks/throughput.py fashion-vit
    python examples/benchmarks/throughput.py cifar10-dinov2 --image-dir path/to/cifar10 --accuracy

Pruned with the default settings but for the budget and how tokens are merged. The pruned models are kept beside the
figures, so that they can be timed again: once on a machine that does nothing else, say.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

from tasks import add_task_arguments, load_task
from timing import images_per_second

from optimum_optin import OptinConfig
from optimum_optin.report import PruningReport


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5])
    parser.add_argument("--merging", nargs="+", choices=["auto", "none"], default=["none", "auto"])
    parser.add_argument("--samples", type=int, default=512, help="calibration images (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--accuracy", action="store_true", help="measure it as well, on the test images")
    parser.add_argument("--output", type=Path, default=Path("outputs/throughput"), help="use another for other samples")
    arguments = parser.parse_args()

    name = Path(arguments.checkpoint).name if arguments.checkpoint else arguments.model
    task = load_task(arguments.model, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir)
    accuracy = {"dense": task.evaluation["test"](task.pruner.model)} if arguments.accuracy else {}
    found = []
    for folder in pruned_models(task, arguments, arguments.output / name):
        report = PruningReport.load(folder)
        pruned = type(task.pruner.model).from_pretrained(folder).eval()
        if arguments.accuracy:
            accuracy["pruned"] = task.evaluation["test"](pruned)
        sizes = {"batches": arguments.batches, "tokens": report.tokens, "repeats": arguments.repeats}
        for entry in images_per_second(task.pruner.model, pruned, **sizes):
            entry |= {"flops": report.flops_requested, "merging": report.config["merging"], "merges": report.merges}
            entry["macs"] = report.macs_pruned / report.macs_dense
            found.append(entry | {"accuracy": accuracy.copy()})
            print(json.dumps(found[-1]), flush=True)
    (arguments.output / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")


def pruned_models(task, arguments, parent):
    """The folders of the pruned models in `parent`, made where they are missing; each is complete or not there."""
    scores = None
    for merging in arguments.merging:
        for flops in arguments.flops:
            folder = parent / f"{merging}-{flops:g}"
            if not folder.is_dir():
                config = OptinConfig(flops=flops, merging=merging, num_samples=arguments.samples)
                if scores is None:
                    scores = task.pruner.score(task.calibration, replace(config, merging="auto"))
                task.pruner.prune(scores=scores, config=config, save_dir=folder)
            yield folder


if __name__ == "__main__":
    main()
