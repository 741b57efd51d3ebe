"""The main job, offline, on a real model: prune a BERT classifier to 60 % of its FLOPs and load it back.

    make quickstart

A trained 12-layer BERT that classifies chemical reactions comes inside the PyPI package rxnfp; calibration needs 512
reactions without labels. Every figure after pruning is of the model reloaded from disk.
"""

import argparse
import time
from pathlib import Path

from demo_models import load_reaction_bert, load_reactions, reaction_accuracy
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from optimum_optin import OptinConfig, OptinPruner
from optimum_optin.timing.side_by_side import compare_latency


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flops", type=float, default=0.6, help="share of MACs to keep (default: %(default)s)")
    parser.add_argument("--save-dir", type=Path, default=Path("outputs/quickstart"), help="(default: %(default)s)")
    parser.add_argument("--compensation", choices=["ridge", "none"], default=OptinConfig.compensation)
    arguments = parser.parse_args()
    config = OptinConfig(flops=arguments.flops, compensation=arguments.compensation)
    logging.set_verbosity_error()

    model, tokenizer = load_reaction_bert()
    evaluation, calibration = load_reactions()
    print(
        f"Reaction BERT: {model.num_parameters() / 1e6:.2f}M parameters, 12 layers; {len(evaluation)} rows to evaluate"
    )
    dense_accuracy = reaction_accuracy(model, tokenizer, evaluation)
    print(f"dense accuracy: {dense_accuracy:.1%}\n")

    pruner = OptinPruner.from_pretrained(model, processor=tokenizer)
    started = time.perf_counter()
    scores = pruner.score([row["text"] for row in calibration], config)
    print(f"\nThe plan\n{pruner.plan(scores)}\n")
    pruner.prune(scores=scores, save_dir=arguments.save_dir)
    seconds = time.perf_counter() - started
    print(f"What was done\n{pruner.report}\npruned and saved in {seconds:.0f} s\n")

    reloaded = AutoModelForSequenceClassification.from_pretrained(arguments.save_dir)
    reloaded_tokenizer = AutoTokenizer.from_pretrained(arguments.save_dir)
    accuracy = reaction_accuracy(reloaded, reloaded_tokenizer, evaluation)
    batch = tokenizer([row["text"] for row in evaluation[:16]], padding=True, return_tensors="pt")
    print("Reloaded from disk")
    print(f"accuracy: {dense_accuracy:.1%} -> {accuracy:.1%}")
    print(f"latency, batch of 16, this machine: {compare_latency(model, reloaded, batch)}")
    print(f"saved in {arguments.save_dir.resolve()}; load it with")
    print("    import optimum_optin")
    print(f"    AutoModelForSequenceClassification.from_pretrained({str(arguments.save_dir)!r})")


if __name__ == "__main__":
    main()
