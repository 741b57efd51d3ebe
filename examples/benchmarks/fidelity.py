"""How well the Gauss-Newton scores agree with the exhaustive ones, over all units of a real model.

    python examples/benchmarks/fidelity.py reactions
    python examples/benchmarks/fidelity.py sentences --glue-dir path/to/glue

Both scorers see the same calibration batches. The exhaustive scores take 20 to 40 minutes on two CPU cores
and are kept in --output, so that other numbers of probes can be compared in seconds.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from scipy.stats import spearmanr
from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig, Scores, find_groups

OUTPUT_WEIGHT = 0.03  # where ranking by these scores is best (docs/source/experiments.mdx)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--samples", type=int, default=32, help="calibration samples (default: %(default)s)")
    parser.add_argument("--probes", type=int, nargs="+", default=[OptinConfig().probes], help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("outputs/fidelity"))
    arguments = parser.parse_args()

    task = load_task(arguments.model, arguments.glue_dir)
    pruner, data = task.pruner, task.calibration
    config = OptinConfig(
        scorer="gauss_newton", output_weight=OUTPUT_WEIGHT, num_samples=arguments.samples, seed=arguments.seed
    )
    exact = exact_scores(pruner, data, replace(config, scorer="exact"), arguments.output / arguments.model)
    groups = find_groups(pruner.model)
    result = {
        "model": arguments.model,
        "units": sum(group.units for group in groups),
        "samples": arguments.samples,
        "threads": torch.get_num_threads(),
        "exact_seconds": exact.seconds,
        "rows": [],
    }
    for probes in arguments.probes:
        sketched = pruner.score(data, replace(config, probes=probes))
        row = {"probes": probes, "seconds": sketched.seconds}
        for term in exact.terms:
            row[term] = correlation(exact.terms[term], sketched.terms[term], groups)
        both = exact.combine(OUTPUT_WEIGHT), sketched.combine()
        row["combined"] = correlation(*both, groups)
        for role in ("heads", "neurons"):
            part = [group for group in groups if group.role == role]
            row[role] = correlation(*both, part)
        result["rows"].append(row)
    print(json.dumps(result, indent=2))
    (arguments.output / f"{arguments.model}.json").write_text(json.dumps(result, indent=2) + "\n")


def exact_scores(pruner, data, config, folder):
    """The exhaustive scores: from the folder if they are there (and fit), else computed and kept."""
    if (folder / "optin_scores.json").is_file():
        scores = Scores.from_pretrained(folder)
        scores.check(pruner.model, config)
        return scores
    scores = pruner.score(data, config)
    scores.save_pretrained(folder)
    return scores


def correlation(one, other, groups):
    """Spearman rank correlation over the units of all groups, pooled over layers."""
    return float(spearmanr(*(torch.cat([scores[group.key] for group in groups]) for scores in (one, other))).statistic)


if __name__ == "__main__":
    main()
