"""Where to take the trajectory: which feature points make the better ranking.

    python examples/benchmarks/feature_points.py reactions
    python examples/benchmarks/feature_points.py sentences --glue-dir path/to/glue

One backward pass per point and probe gives every choice of points from one run. No output term, no compensation, seed
0; metrics on development rows.
"""

import argparse

import torch
from tasks import add_task_arguments, load_task

from optimum_optin import OptinConfig, find_groups, masked
from optimum_optin.comparing.losses import probe_manifold
from optimum_optin.discovery.find import find_layers
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.inputs.probes import mean_tokens
from optimum_optin.inputs.tokens import token_masks
from optimum_optin.passes.hooks import recorded
from optimum_optin.passes.trajectory import draw_rows, trajectory_features
from optimum_optin.pricing.macs import cost_tables, dense_cost
from optimum_optin.running.freezing import frozen
from optimum_optin.search.masks import search

ATTENTION_BLOCK = "attention.output"  # of a BERT layer: the residual stream between its sublayers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_task_arguments(parser)
    parser.add_argument("--probes", type=int, default=64)
    parser.add_argument("--flops", type=float, nargs="+", default=[0.7, 0.6, 0.5])
    arguments = parser.parse_args()

    task = load_task(arguments.model, arguments.glue_dir, hold_out=True)
    model, config = task.pruner.model, OptinConfig()
    batches = calibration_batches(task.calibration, model, task.pruner.processor, num_samples=config.num_samples)
    groups = find_groups(model)
    costs = cost_tables(model, groups, mean_tokens(batches, model))
    print(f"dense {task.development(model):.2f}", flush=True)
    for name, scores in score_by_points(model, groups, batches, arguments.probes, config.rows).items():
        metrics = []
        for flops in arguments.flops:
            by_group = dict(zip((group.key for group in groups), scores.split([g.units for g in groups]), strict=True))
            masks = search(by_group, costs, flops * dense_cost(costs))
            with masked(model, groups, masks):
                metrics.append(round(task.development(model), 1))
        print(name, metrics, flush=True)


def score_by_points(model, groups, batches, probes, rows):
    """Choice of points -> squared probe gradients summed over the probes, shape (all units,)."""
    layers = find_layers(model)
    inner = {f"{name} inner": f"{path}.{ATTENTION_BLOCK}" for name, path in layers.items()}
    number = {name: index for index, name in enumerate(layers)}
    own = torch.cat([torch.full((group.units,), number[group.layer]) for group in groups])
    after = torch.arange(len(layers))[:, None]
    generator = torch.Generator().manual_seed(0)
    totals = {}
    for probe in range(probes):
        batch = batches[probe % len(batches)]
        masks = {group.key: torch.ones(group.units, requires_grad=True) for group in groups}
        real = token_masks(model, batch)
        with frozen(model), masked(model, groups, masks), recorded(model, {**layers, **inner}) as outputs:
            model(**batch)
        features = trajectory_features(outputs, draw_rows(real, rows, generator), real)
        at = {name: _gradient(probe_manifold(feature, generator), masks) for name, feature in features.items()}
        by_layer = torch.stack([at[name] for name in layers])  # (layers, units)
        last = own == len(layers) - 1  # has nothing after it
        choices = {
            "own layer and later": by_layer.sum(0),
            "later layers": torch.where(last, by_layer[-1], (by_layer * (after > own)).sum(0)),
            "last layer": by_layer[-1],
            "every sublayer": torch.stack(list(at.values())).sum(0),
            "own layer": by_layer.gather(0, own[None])[0],
        }
        for name, gradient in choices.items():
            totals[name] = totals.get(name, 0) + gradient.double().square()
    return totals


def _gradient(functional, masks):
    gradients = torch.autograd.grad(functional, list(masks.values()), retain_graph=True, allow_unused=True)
    pairs = zip(gradients, masks.values(), strict=True)
    return torch.cat([torch.zeros_like(mask) if gradient is None else gradient for gradient, mask in pairs])


if __name__ == "__main__":
    main()
