"""How much of the ideal speed a cut reaches: the speedup of a pruned model, as a share of what its MACs promise.

    python examples/benchmarks/ideal_speed.py bert-base dinov2-small reactions fashion-vit
    python examples/benchmarks/ideal_speed.py reactions --flops 0.5 --variants eager compile --threads 2

Models are pruned, saved, loaded again and timed beside the dense one (`optimum_optin.benchmarking`). The ideal is one
over the share of the whole model's MACs that the flop counter finds left at this length. `bert-base` and
`dinov2-small` have random weights: no accuracy is told. One line for each cell.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
from tasks import TASKS, load_task
from transformers import BertConfig, BertForSequenceClassification, Dinov2Config, Dinov2ForImageClassification

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.benchmarking import run_benchmark
from optimum_optin.benchmarking.cells import DENSE, PRUNED
from optimum_optin.inputs.probes import probe_batch
from optimum_optin.models.identity import main_input_of
from optimum_optin.pricing.macs import count_macs


def bert_base(samples):
    rows = torch.randint(1000, 30_000, (samples, 128)).tolist()
    return BertForSequenceClassification(BertConfig()), [{"input_ids": row} for row in rows]


def dinov2_small(samples):
    shape = Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=224)  # 12 layers, patches of 14 pixels
    return Dinov2ForImageClassification(shape), [{"pixel_values": image} for image in torch.randn(samples, 3, 224, 224)]


RANDOM = {"bert-base": bert_base, "dinov2-small": dinov2_small}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", choices=(*RANDOM, *TASKS))
    parser.add_argument("--flops", type=float, nargs="+", default=[0.6, 0.5])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 128], help="of texts")
    parser.add_argument("--variants", nargs="+", default=["eager"])
    parser.add_argument("--threads", type=int)
    parser.add_argument("--samples", type=int, default=64, help="calibration samples (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--glue-dir")
    parser.add_argument("--image-dir")
    parser.add_argument("--checkpoint", help="fine-tuned model, for tasks that need one")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cell")
    arguments = parser.parse_args()
    for name in arguments.models:
        pruner, calibration = load(name, arguments)
        scores = pruner.score(calibration, OptinConfig(num_samples=arguments.samples, search="ranked"))
        for flops in arguments.flops:
            for cell in cells(pruner, calibration, scores, flops, arguments):
                line = {"model": name, "flops": flops, **cell}
                print(json.dumps(line), flush=True)
                if arguments.out:
                    with arguments.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(line) + "\n")


def load(name, arguments):
    """A pruner and its calibration samples."""
    if name in RANDOM:
        torch.manual_seed(0)
        model, calibration = RANDOM[name](arguments.samples)
        return OptinPruner(model.eval()), calibration
    task = load_task(name, arguments.glue_dir, checkpoint=arguments.checkpoint, image_dir=arguments.image_dir)
    return task.pruner, task.calibration


def cells(pruner, calibration, scores, flops, arguments):
    """One entry for each batch, length and variant."""
    dense = pruner.model
    with tempfile.TemporaryDirectory() as folder:
        made = pruner.prune(calibration, scores=scores, flops=flops, save_dir=Path(folder) / "pruned")
        pruned = type(made).from_pretrained(Path(folder) / "pruned").eval()
    fixed = main_input_of(dense) == "pixel_values"  # images are as large as they are
    for tokens in [scores.tokens] if fixed else arguments.tokens:
        batch = probe_batch(dense, tokens)
        ideal = count_macs(dense, batch) / count_macs(pruned, batch)
        found = run_benchmark(
            dense,
            pruned,
            tokens=tokens,
            batch_size=arguments.batches,
            variants=arguments.variants,
            repeats=arguments.repeats,
            threads=arguments.threads,
        )
        dense_ms = {(cell.variant, cell.batch_size): cell.p50_ms for cell in found.cells if cell.model == DENSE}
        for cell in (each for each in found.cells if each.model == PRUNED):
            yield {
                "tokens": tokens,
                "batch_size": cell.batch_size,
                "variant": cell.variant,
                "threads": found.machine.threads,
                "dense_ms": round(dense_ms[cell.variant, cell.batch_size], 2),
                "speedup": [round(each, 3) for each in (cell.speedup.low, cell.speedup.median, cell.speedup.high)],
                "ideal": round(ideal, 3),
                "of_ideal": round(cell.speedup.median / ideal, 3),
                "noise": cell.noise,
            }


if __name__ == "__main__":
    main()
