"""Do trial cuts choose well? Distances of each candidate, on a part of the data and after the whole refit.

    python examples/benchmarks/trial_cuts.py reactions
    python examples/benchmarks/trial_cuts.py sentences --glue-dir path/to/glue

For every budget and every weight of the output term that measured search tries: the divergence of the trial's model
(refitted on a part of the batches), that of the model refitted on all of them, both on held-out calibration samples,
and the metric on development rows. For a model without a head also two distances of what sentence embeddings are used
for: 1 - cosine of the mean-pooled embedding with the dense model's, and the squared error of the cosines of all pairs.
"""

import argparse
import copy
from dataclasses import replace

import torch
from tasks import add_task_arguments, load_task, pool

from optimum_optin import OptinConfig, find_groups
from optimum_optin.compensation.refit import refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.running.batch import token_mask
from optimum_optin.search.candidates import ranked
from optimum_optin.search.divergence import measure_divergence
from optimum_optin.search.trials import STRENGTH

HELD_OUT = 8  # every eighth batch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--weights", type=float, nargs="+", default=[1.0, 0.1, 10.0])
    parser.add_argument("--parts", type=int, nargs="+", default=[4, 8], help="trials see a quarter, an eighth, ...")
    parser.add_argument("--flops", type=float, nargs="+", default=[0.5, 0.3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments = parser.parse_args()

    task = load_task(
        arguments.model,
        arguments.glue_dir,
        hold_out=True,
        checkpoint=arguments.checkpoint,
        image_dir=arguments.image_dir,
    )
    model, groups = task.pruner.model, find_groups(task.pruner.model)
    for seed in arguments.seeds:
        scores = task.pruner.score(task.calibration, OptinConfig(seed=seed))
        calibration = scores.calibration
        held_out = calibration.part(range(0, len(calibration), HELD_OUT))
        starts = [start for index, start in enumerate(calibration.starts) if index % HELD_OUT]
        for flops in arguments.flops:
            config = replace(scores.config, flops=flops)
            weights = arguments.weights
            masks = [ranked(model, groups, scores, config, output_weight=weight).masks for weight in weights]
            for part in arguments.parts:
                trials = refitted(model, groups, masks, starts[: len(starts) // part], STRENGTH)
                print(
                    f"seed {seed}, {flops}, trial on 1/{part}:", distances(model, trials, groups, held_out), flush=True
                )
            pruned = refitted(model, groups, masks, starts, None)
            print(f"seed {seed}, {flops}, refitted on all:", distances(model, pruned, groups, held_out))
            metrics = [round(task.development(each), 2) for each in pruned]
            print(f"seed {seed}, {flops}, {task.metric} on development rows:", metrics, flush=True)


def refitted(model, groups, candidates, starts, strength):
    """The models of several masks."""
    pruned = [copy.deepcopy(model) for _ in candidates]
    for each, masks in zip(pruned, candidates, strict=True):
        rewrite(each, groups, masks)
    refit(model, pruned, groups, starts, strength)
    return pruned


def distances(dense, pruned, groups, batches):
    """Name -> distance of each pruned model."""
    found = {"divergence": [round(each.distance, 4) for each in measure_divergence(dense, pruned, groups, batches)]}
    if not hasattr(dense, "classifier"):
        target, embedded = embed(dense, batches), [embed(each, batches) for each in pruned]
        found["1 - cosine"] = [round(1 - float((target * each).sum(-1).mean()), 4) for each in embedded]
        pairs = [(target @ target.T - each @ each.T).square().mean() for each in embedded]
        found["pairs"] = [round(float(each), 5) for each in pairs]
    return found


@torch.no_grad()
def embed(model, batches):
    """Mean-pooled sentence embeddings of length one, shape (samples, channels)."""
    return torch.cat([pool(model(**batch).last_hidden_state, token_mask(batch)) for batch in batches])


if __name__ == "__main__":
    main()
