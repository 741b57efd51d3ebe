"""Token merging in a segmenter, DINOv2 with a linear head: mean IoU against FLOPs kept, and throughput.

    python examples/train_segmentation_head.py --backgrounds path/to/cifar10     # once
    python examples/benchmarks/merging_segmenters.py --backgrounds path/to/cifar10 --out outputs/merging.jsonl
    python examples/benchmarks/merging_segmenters.py --backgrounds path/to/cifar10 --methods constant --budgets 0.65

*units* removes heads and neurons alone, *auto* may merge tokens as well (`merging="auto"`), *constant* merges alone and
equally much after every layer (ToMe's schedule), whatever the seed, *scored* merges alone and where token scores say.
Calibration images are train scenes without their annotations, drawn by the seed. Every model is saved and loaded again
before it is measured, on test scenes or, with --development, on train scenes that no calibration sees. FLOPs are those
of the reloaded model as a share of the dense one's, the comparing of tokens included; the target is a share of what
units have a part in. Throughput is timed against the dense model in turn. One line for each model.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.merging.schedule import TokenSchedule, constant_schedule, scored_schedule
from optimum_optin.pricing.macs import token_costs
from optimum_optin.timing.side_by_side import compare_latency

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder

from fashion_scenes import FashionScenes
from scene_accuracy import scene_accuracy

METHODS = ("units", "auto", "constant", "scored")
DEVELOPMENT = 1000  # seed of the train scenes that stand in for test scenes


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--folder", type=Path, help="of the trained model (default: where its script puts it)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.8, 0.65, 0.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=256, help="train scenes (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=OptinConfig().probes, help="of scores (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=500, help="to measure on (default: %(default)s)")
    parser.add_argument("--development", action="store_true", help="measure on train scenes, for choices")
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[], help="to time at, e.g. 1 8")
    parser.add_argument("--repeats", type=int, default=15, help="timed passes of each model (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append one JSON line for each model")
    arguments = parser.parse_args()
    folder = arguments.folder or Path.home() / ".cache" / "optimum-optin" / "scenes-dinov2"
    dense = load(folder)
    pruner = OptinPruner(dense, AutoImageProcessor.from_pretrained(folder))
    split, seed = ("train", DEVELOPMENT) if arguments.development else ("test", 0)
    scenes = [*FashionScenes(split, arguments.scenes, seed=seed, cifar10_dir=arguments.backgrounds)]
    found = scene_accuracy(dense, pruner.processor, scenes)
    print("dense:", found, flush=True)
    for seed in arguments.seeds:
        train = FashionScenes("train", arguments.samples, seed=seed, cifar10_dir=arguments.backgrounds)
        config = OptinConfig(num_samples=arguments.samples, probes=arguments.probes, seed=seed, merging="auto")
        scores = pruner.score([scene.image for scene in train], config)
        for budget in arguments.budgets:
            for method in arguments.methods:
                if method == "constant" and seed != arguments.seeds[0]:
                    continue  # it depends on no data
                configured = configuration(pruner.model, scores, method, budget)
                if configured is None:
                    print(f"{method} at {budget}: merging alone cannot save so much", flush=True)
                    continue
                started = time.perf_counter()
                with tempfile.TemporaryDirectory() as place:
                    pruner.prune(scores=scores, config=configured, save_dir=Path(place) / "pruned")
                    loaded = load(Path(place) / "pruned")
                seconds, report = time.perf_counter() - started, pruner.report
                found = scene_accuracy(loaded, pruner.processor, scenes)
                line = {"seed": seed, "method": method, "budget": budget, "development": arguments.development}
                line |= {"achieved": report.flops_achieved, "flops": report.macs_pruned / report.macs_dense}
                line |= {"mean_iou": found.mean_iou, "pixels": found.pixel_accuracy, "merges": report.merges}
                line |= {"divergence": report.divergence.distance, "seconds": seconds}
                for size in arguments.batch_sizes:
                    inputs = pruner.processor(images=[scene.image for scene in scenes[:size]], return_tensors="pt")
                    times = compare_latency(dense, loaded, dict(inputs), arguments.repeats)
                    line |= {f"batch {size}": [size / times.dense_seconds, size / times.pruned_seconds, times.speedup]}
                print(json.dumps(line), flush=True)
                if arguments.out:
                    arguments.out.parent.mkdir(parents=True, exist_ok=True)
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


def load(folder: Path) -> torch.nn.Module:
    """A segmenter as anyone would load it."""
    return AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()


def configuration(model, scores, method: str, budget: float) -> OptinConfig | None:
    """How to prune by a method; `None` if merging alone cannot save so much."""
    if method in ("units", "auto"):
        return replace(scores.config, flops=budget, merging="auto" if method == "auto" else "none")
    costs = token_costs(model, find_groups(model), scores.tokens)
    most = budget * costs.of(TokenSchedule(costs.protected))
    if method == "constant":
        schedule = constant_schedule(costs, most)
    else:
        losses = {layer: loss.tolist() for layer, loss in scores.combine_merges().items()}
        schedule = scored_schedule(costs, losses, most)
    if schedule is None:
        return None
    return replace(scores.config, flops=1.0, merging=[schedule.merges.get(layer, 0) for layer in costs.layers])


if __name__ == "__main__":
    main()
