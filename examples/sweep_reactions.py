"""One model, many budgets: accuracy against time and size of the reaction classifier of the quickstart, with a picture.

    python examples/sweep_reactions.py --samples 512 --rows 1500

All budgets come from one scoring. The folder gets the table (`optin_sweep.json`), the picture, and the smallest model
that loses no more accuracy than `--max-drop`.
"""

import argparse
from pathlib import Path

from demo_models import load_reaction_bert, load_reactions, reaction_accuracy
from transformers.utils import logging

from optimum_optin import OptinConfig, OptinPruner


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", type=float, nargs="+", default=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3])
    parser.add_argument("--samples", type=int, default=512, help="calibration reactions (default: %(default)s)")
    parser.add_argument("--probes", type=int, default=OptinConfig.probes, help="(default: %(default)s)")
    parser.add_argument("--rows", type=int, default=1500, help="reactions to measure on (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=8, help="of what is timed (default: %(default)s)")
    parser.add_argument("--max-drop", type=float, default=0.01, help="(default: %(default)s)")
    parser.add_argument("--save-dir", type=Path, default=Path("outputs/sweep"), help="(default: %(default)s)")
    parser.add_argument("--work-dir", type=Path, help="goes on from there if it was killed")
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    model, tokenizer = load_reaction_bert()
    evaluation, calibration = load_reactions()

    def accuracy(model):
        return reaction_accuracy(model, tokenizer, evaluation[: arguments.rows])

    pruner = OptinPruner(model, tokenizer)
    sweep = pruner.sweep(
        [row["text"] for row in calibration],
        arguments.budgets,
        OptinConfig(num_samples=arguments.samples, probes=arguments.probes),
        evaluate=accuracy,
        max_drop=arguments.max_drop,
        batch_size=arguments.batch_size,
        save_dir=arguments.save_dir,
        work_dir=arguments.work_dir,
    )
    print(sweep)
    if pruner.pruned_model is not None:
        print(
            f"\nsaved in {arguments.save_dir.resolve()}: the smallest that loses no more than {arguments.max_drop:.1%}"
        )
        print(pruner.report)


if __name__ == "__main__":
    main()
