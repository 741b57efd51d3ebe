"""Images per second of pruned models, loaded again from disk, against the dense one, side by side in one run.

    python examples/benchmarks/throughput.py fashion-vit
    python examples/benchmarks/throughput.py cifar10-dinov2 --image-dir path/to/cifar10

Pruned with the default settings but for the budget and how tokens are merged.
"""

import argparse
import json
import tempfile
from pathlib import Path

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig
from optimum_optin.benchmark import latency_entry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5])
    parser.add_argument("--tokens", nargs="+", choices=["auto", "none"], default=["none", "auto"])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=Path("outputs/throughput"))
    arguments = parser.parse_args()

    task = load_task(arguments.model, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir)
    pruner, found = task.pruner, []
    scores = pruner.score(task.calibration, OptinConfig(tokens="auto"))
    for tokens in arguments.tokens:
        for flops in arguments.flops:
            with tempfile.TemporaryDirectory() as folder:
                pruner.prune(scores=scores, config=OptinConfig(flops=flops, tokens=tokens), save_dir=folder)
                pruned = type(pruner.model).from_pretrained(folder).eval()
            for batch_size in arguments.batches:
                sizes = {"batch_size": batch_size, "tokens": scores.tokens, "repeats": arguments.repeats}
                entry = latency_entry(pruner.model, pruned, **sizes)
                per_second = {name: 1e3 * batch_size / entry[f"{name}_ms"] for name in ("dense", "pruned")}
                entry |= {"flops": flops, "merging": tokens, "images_per_second": per_second}
                entry |= {"merges": pruner.report.merges, "macs": pruner.report.macs_pruned / pruner.report.macs_dense}
                found.append(entry)
                print(json.dumps(entry), flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.model}.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
