"""An encoder-decoder: sentences written right against FLOPs kept, for several ways to choose units.

    python examples/train_tiny_t5.py                        # once: the model
    python examples/benchmarks/text_to_text.py --seeds 0 1 2

Calibration sentences are of the train split, drawn by the seed; all figures are of the test split. Every method keeps
the same share of the MACs of all heads and neurons, within one unit. Each is measured with and without our refit:

- surgeon: our scores and search, saved, and loaded again before it is measured.
- random, magnitude: the same share of every layer; at random, or by the norm of what the consumers read.

`--calibrate texts` gives the sentences alone, so that the model goes by what it writes itself. `right` is the share of
sentences that are written right to the last digit, greedily; `loss` the mean of -log p over the tokens that are to be
written, in nats; `agreement` the share of these at which the likeliest token is the dense model's. One line a cut.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel
from unit_methods import METHODS, Harness

from optimum_optin import OptinConfig, OptinPruner

sys.path.insert(0, str(Path(__file__).parents[1]))  # the examples beside this folder
from train_tiny_t5 import CACHE, load, pairs, written_right


@torch.inference_mode()
def measured(model: PreTrainedModel, dense: PreTrainedModel, tokenizer, rows: list[dict[str, str]]) -> dict[str, float]:
    """The figures of a model on the test sentences."""
    losses, agreeing = [], []
    for start in range(0, len(rows), 100):
        part = rows[start : start + 100]
        inputs, targets = (
            tokenizer([row[name] for row in part], padding=True, return_tensors="pt") for name in ("source", "target")
        )
        labels, real = targets["input_ids"], targets["attention_mask"].bool()
        batch = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"], "labels": labels}
        logits, others = model(**batch).logits, dense(**batch).logits
        losses.append(torch.nn.functional.cross_entropy(logits[real], labels[real], reduction="none"))
        agreeing.append((logits.argmax(-1) == others.argmax(-1))[real])
    found = {"loss": torch.cat(losses).double().mean(), "agreement": torch.cat(agreeing).double().mean()}
    return {"right": written_right(model, tokenizer, rows)} | {
        name: round(float(each), 4) for name, each in found.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=CACHE, help="(default: %(default)s)")
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.7, 0.5])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--calibrate", choices=("pairs", "texts"), default="pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samples", type=int, default=256, help="calibration sentences (default: %(default)s)")
    parser.add_argument("--test-samples", type=int, default=500, help="(default: %(default)s)")
    parser.add_argument("--out", type=Path, help="append one JSON line for each cut")
    arguments = parser.parse_args()
    dense, tokenizer = load(arguments.model)
    pruner = OptinPruner(dense, tokenizer)
    train, test = pairs("train", 20_000), pairs("test", 2000)[: arguments.test_samples]
    calibration = train if arguments.calibrate == "pairs" else [row["source"] for row in train]
    print("dense:", json.dumps(measured(dense, dense, tokenizer, test)), flush=True)
    for seed in arguments.seeds:
        config = OptinConfig(num_samples=arguments.samples, seed=seed)
        harness = Harness(pruner, calibration, config, AutoModelForSeq2SeqLM)
        for method in arguments.methods:
            for refitted in (True, False):
                for budget in arguments.budgets:
                    started = time.perf_counter()
                    cut, flops = harness.cut(method, budget, refitted)
                    line = {"seed": seed, "method": method, "refit": refitted, "budget": budget}
                    line |= {"flops": round(flops, 4), "seconds": round(time.perf_counter() - started, 1)}
                    line |= measured(cut, dense, tokenizer, test)
                    print(json.dumps(line), flush=True)
                    if arguments.out:
                        with arguments.out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
