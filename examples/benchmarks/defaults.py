"""The evidence behind the scoring defaults: one field changed at a time, accuracy after pruning.

    python examples/benchmarks/defaults.py reactions
    python examples/benchmarks/defaults.py sentences --glue-dir path/to/glue

Metrics are taken on development rows that are neither calibration nor evaluation data: rows of the calibration
part (reactions) and of STS-B's train split (sentences). No compensation; mean over the seeds.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch
from scipy.stats import spearmanr

from optimum_optin import OptinConfig, OptinPruner

sys.path.insert(0, str(Path(__file__).parents[1]))
from demo_models import load_reaction_bert, load_reactions, load_sentence_minilm, load_stsb, reaction_accuracy

DEVELOPMENT_ROWS = 800
OUTPUT_WEIGHTS = (0.0, 0.03, 0.1, 0.3, 1.0)
VARIANTS = (
    {},
    {"probes": 32},
    {"probes": 64},
    {"probes": 256},
    {"batch_size": 4, "probes": 256},
    {"batch_size": 16, "probes": 64},
    {"rows": 16},
    {"rows": 256},
    {"temperature": 4.0},
)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["reactions", "sentences"])
    parser.add_argument("--glue-dir", help="folder of GLUE TSV files (default: the Hub)")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.6, 0.5])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("outputs/defaults"))
    arguments = parser.parse_args()

    pruner, calibration, evaluate = load(arguments.model, arguments.glue_dir)
    print(f"dense {evaluate(pruner.model):.2f}", flush=True)
    table = {}
    for variant in VARIANTS:
        # The output term's weight needs no new scores, so it is swept where they are the default's.
        weights = OUTPUT_WEIGHTS if not variant else (OptinConfig().output_weight,)
        metrics = {weight: {flops: [] for flops in arguments.flops} for weight in weights}
        for seed in arguments.seeds:
            scores = pruner.score(calibration, OptinConfig(**variant, seed=seed))
            for weight in weights:
                config = OptinConfig(**variant, seed=seed, output_weight=weight)
                for flops in arguments.flops:
                    metrics[weight][flops].append(evaluate(pruner.prune(scores=scores, config=config, flops=flops)))
        for weight in weights:
            name = json.dumps({**variant, "output_weight": weight})
            table[name] = {flops: statistics.mean(values) for flops, values in metrics[weight].items()}
            print(name, {flops: round(value, 2) for flops, value in table[name].items()}, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / f"{arguments.model}.json").write_text(json.dumps(table, indent=2) + "\n")


def load(name, glue_dir):
    """A pruner, its calibration texts, and a function that gives a model's metric in percent."""
    if name == "reactions":
        model, tokenizer = load_reaction_bert()
        rows = load_reactions()[1]
        development = rows[-DEVELOPMENT_ROWS:]
        calibration = [row["text"] for row in rows[:-DEVELOPMENT_ROWS]]
        return (
            OptinPruner(model, tokenizer),
            calibration,
            lambda model: 100 * reaction_accuracy(model, tokenizer, development),
        )
    model, tokenizer = load_sentence_minilm()
    rows = load_stsb("train", glue_dir)
    development = rows[-DEVELOPMENT_ROWS:]
    calibration = [row[name] for row in rows[:-DEVELOPMENT_ROWS] for name in ("sentence1", "sentence2")]
    return OptinPruner(model, tokenizer), calibration, lambda model: 100 * similarity(model, tokenizer, development)


def similarity(model, tokenizer, rows):
    """Spearman correlation of the mean-pooled cosine with the human scores."""
    one, other = (embed(model, tokenizer, [row[name] for row in rows]) for name in ("sentence1", "sentence2"))
    return float(spearmanr((one * other).sum(-1), [row["label"] for row in rows]).statistic)


@torch.no_grad()
def embed(model, tokenizer, texts, batch_size=64):
    """Mean-pooled, normalised sentence embeddings, shape (texts, channels)."""
    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
    embedded = [None] * len(texts)
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        inputs = tokenizer([texts[index] for index in part], padding=True, truncation=True, return_tensors="pt")
        mask = inputs["attention_mask"].unsqueeze(-1)
        pooled = (model(**inputs).last_hidden_state * mask).sum(1) / mask.sum(1)
        for index, vector in zip(part, torch.nn.functional.normalize(pooled, dim=-1), strict=True):
            embedded[index] = vector
    return torch.stack(embedded)


if __name__ == "__main__":
    main()
