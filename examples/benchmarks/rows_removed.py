"""Whether real models lose the same units when all that is known of them is found by tracing.

    python examples/benchmarks/rows_removed.py reactions

Scores and prunes twice with the same seed: as the model's row in the table of architectures says, and with the row out
of the way. Prints which masks are equal, and accuracy of both models reloaded from disk.
"""

import argparse
import tempfile
import time
from pathlib import Path

from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.architectures import registry


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--flops", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    arguments = parser.parse_args()

    task = load_task(
        arguments.model, arguments.glue_dir, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir
    )
    for seed in arguments.seeds:
        config = OptinConfig(seed=seed, flops=arguments.flops)
        declared = pruned(task, config)
        row = registry._ARCHITECTURES.pop(task.pruner.model.config.model_type)
        try:
            traced = pruned(task, config)
        finally:
            registry._ARCHITECTURES[task.pruner.model.config.model_type] = row
        same = [key for key, kept in declared["structure"].items() if traced["structure"].get(key) == kept]
        print(f"seed {seed}: {len(same)} of {len(declared['structure'])} masks are equal", flush=True)
        for name, each in {"row": declared, "traced": traced}.items():
            print(f"  {name}: {each['figures']} %, {each['seconds']:.0f} s, left whole: {each['left']}", flush=True)


def pruned(task, config):
    """Structure, accuracy and time of one pruning, by a pruner that knows nothing from before."""
    pruner = OptinPruner(task.pruner.model, task.pruner.processor)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        model = pruner.prune(task.calibration, config, save_dir=Path(folder) / "pruned")
        seconds = time.perf_counter() - started
        reloaded = type(model).from_pretrained(Path(folder) / "pruned").eval()
    structure = model.config.quantization_config.structure
    figures = {split: round(measure(reloaded), 2) for split, measure in task.evaluation.items()}
    return {"structure": structure, "figures": figures, "seconds": seconds, "left": list(pruner.report.left_whole)}


if __name__ == "__main__":
    main()
