"""Segmenters of fashion scenes: mean IoU against FLOPs kept, for several ways to choose units, all with our refit.

    python examples/train_segmenter.py segformer --backgrounds path/to/cifar10     # once, and mask2former
    python examples/benchmarks/segmentation.py segformer --backgrounds path/to/cifar10
    python examples/benchmarks/segmentation.py mask2former ... --budgets 0.75 0.5 --methods surgeon random --seeds 0 1 2
    python examples/benchmarks/segmentation.py segformer ... --backbone         # all else stays whole

Calibration images are train scenes without their annotations, drawn by the seed. Every cut is saved and loaded again
before it is measured on the test scenes. FLOPs are those of the rewritten model and of its backbone, as shares of the
dense one's. With `--batches`, images per second of the reloaded model and of the dense one follow, timed in turn. One
line for each cut.
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from transformers import AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.evaluation.latency import latency_entry
from optimum_optin.media.vision import usual_image
from optimum_optin.pricing.unit_costs import macs_of_modules

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder

import baselines  # noqa: F401, registers "magnitude", "activation" and "random"
from fashion_scenes import FashionScenes
from scene_accuracy import scene_accuracy

CLASSES = {"segformer": AutoModelForSemanticSegmentation, "mask2former": AutoModelForUniversalSegmentation}
BACKBONES = {"segformer": "segformer", "mask2former": "model.pixel_level_module.encoder"}
BACKBONE_GROUPS = {"segformer": "layers.*", "mask2former": "pixel_level_module_encoder.*"}
METHODS = ("surgeon", "activation", "magnitude", "random")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=CLASSES)
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of cifar10_jpeg.tar.xz")
    parser.add_argument("--folder", type=Path, help="of the trained model (default: where its script puts it)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.75, 0.5, 0.4])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--samples", type=int, default=256, help="train scenes (default: %(default)s)")
    parser.add_argument("--test-scenes", type=int, default=500)
    parser.add_argument("--backbone", action="store_true", help="prune the backbone alone")
    parser.add_argument("--batches", type=int, nargs="*", default=[], help="batch sizes to time")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    folder = arguments.folder or Path.home() / ".cache" / "optimum-optin" / f"scenes-{arguments.model}"
    dense = CLASSES[arguments.model].from_pretrained(folder).eval()
    pruner = OptinPruner.from_pretrained(folder)
    test = [*FashionScenes("test", arguments.test_scenes, cifar10_dir=arguments.backgrounds)]
    print("dense:", scene_accuracy(dense, pruner.processor, test), flush=True)
    for seed in arguments.seeds:
        train = FashionScenes("train", arguments.samples, seed=seed, cifar10_dir=arguments.backgrounds)
        images = [scene.image for scene in train]
        for method in arguments.methods:
            search = "measured" if method == "surgeon" else "ranked"
            config = OptinConfig(scorer=method, search=search, num_samples=arguments.samples, seed=seed)
            if arguments.backbone:
                config = replace(config, include=(BACKBONE_GROUPS[arguments.model],))
            scores = pruner.score(images, config)
            for budget in arguments.budgets:
                with tempfile.TemporaryDirectory() as place:
                    pruner.prune(scores=scores, flops=budget, save_dir=Path(place) / "pruned")
                    loaded = CLASSES[arguments.model].from_pretrained(Path(place) / "pruned").eval()
                found, report = scene_accuracy(loaded, pruner.processor, test), pruner.report
                line = {"model": arguments.model, "seed": seed, "method": method, "budget": budget}
                line |= {"flops": report.macs_pruned / report.macs_dense, "mean_iou": found.mean_iou}
                line |= {"backbone": backbone_share(arguments.model, dense, loaded), "alone": arguments.backbone}
                line |= {"pixels": found.pixel_accuracy, "seconds": sum(report.seconds.values())}
                line |= {"images_per_second": throughput(dense, loaded, arguments.batches, report.tokens)}
                print(json.dumps(line), flush=True)
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


def backbone_share(name, dense, pruned):
    """MACs of a pruned model's backbone, as a share of the dense one's."""
    batch = usual_image(dense)
    pruned, dense = (macs_of_modules(model, batch)[BACKBONES[name]] for model in (pruned, dense))
    return pruned / dense


def throughput(dense, pruned, batches, tokens):
    """Batch size -> images per second of the dense and of the pruned model."""
    found = {}
    for size in batches:
        entry = latency_entry(dense, pruned, batch_size=size, tokens=tokens, repeats=15)
        found[size] = [1e3 * size / each for each in (entry.dense_ms, entry.pruned_ms)]
    return found


if __name__ == "__main__":
    main()
