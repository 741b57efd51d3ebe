"""`OptinConfig.paper()`: its masks are those of exhaustive scores and of all sets within the budget, both by hand."""

import itertools

import pytest
import torch
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, find_groups, masked
from optimum_optin.command_line.arguments import load_config
from optimum_optin.commands.run import make_parser
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.pricing.macs import cost_tables
from optimum_optin.running.freezing import frozen
from optimum_optin.running.randomness import generators
from optimum_optin.storage.entry import structure_of_model

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 6}


def _trajectory_and_output(model, groups, batches, masks, config):
    """Gram matrices of drawn tokens after every layer, and log-probabilities at temperature 4, for each batch."""
    found = []
    for batch, generator in zip(batches, generators(config.seed, len(batches)), strict=True):
        real = batch["attention_mask"].flatten().nonzero().flatten()
        drawn = real[torch.randperm(len(real), generator=generator)[: config.rows]]
        with masked(model, groups, masks):
            outputs = model(**batch, output_hidden_states=True)
        grams = []
        for hidden in outputs.hidden_states[1:]:
            tokens = torch.nn.functional.normalize(hidden.flatten(0, 1)[drawn], dim=-1)
            grams.append(tokens @ tokens.T)
        found.append((grams, (outputs.logits / 4).log_softmax(-1)))
    return found


def _by_hand(model, groups, batches, config):
    """Group key -> score of each unit: L_MD over all layers, and a tenth of L_KD, each divided by its sum."""
    run = (model, groups, batches)
    full = {group.key: torch.ones(group.units) for group in groups}
    dense = _trajectory_and_output(*run, full, config)
    terms = {"trajectory": {}, "output": {}}
    for group in groups:
        for unit in range(group.units):
            masks = {key: mask.clone() for key, mask in full.items()}
            masks[group.key][unit] = 0
            pairs = zip(dense, _trajectory_and_output(*run, masks, config), strict=True)
            for (grams, log_dense), (others, log_masked) in pairs:
                moved = sum(float((one - other).square().sum()) for one, other in zip(grams, others, strict=True))
                diverged = 16 * float((log_dense.exp() * (log_dense - log_masked)).sum(-1).mean())
                for term, value in (("trajectory", moved), ("output", diverged)):
                    scores = terms[term].setdefault(group.key, [0.0] * group.units)
                    scores[unit] += value
    sums = {term: sum(map(sum, by_group.values())) for term, by_group in terms.items()}
    return {
        key: [
            moved / sums["trajectory"] + 0.1 * diverged / sums["output"]
            for moved, diverged in zip(scores, terms["output"][key], strict=True)
        ]
        for key, scores in terms["trajectory"].items()
    }


def _best(scores, costs, budget):
    """The masks that lose least, of all numbers of heads and of neurons that the budget pays for."""
    ranked = {
        role: sorted(
            (scores[key][unit], key, unit) for key in scores if role in key for unit in range(len(scores[key]))
        )
        for role in ("heads", "neurons")
    }
    best = None
    for heads, neurons in itertools.product(*(range(len(units) + 1) for units in ranked.values())):
        gone = ranked["heads"][:heads] + ranked["neurons"][:neurons]
        left = {key: len(units) - sum(key == other for _, other, _ in gone) for key, units in scores.items()}
        spent = sum(float(costs[key][count]) for key, count in left.items())
        lost = sum(score for score, *_ in gone)
        if spent <= budget and (best is None or lost < best[0]):
            best = lost, {(key, unit) for _, key, unit in gone}
    return best[1]


@pytest.mark.parametrize("flops", [0.8, 0.5])
@torch.no_grad()
def test_its_masks_are_those_of_exact_scores_by_hand(flops):
    model = tiny_model(**SMALL)
    config = OptinConfig.paper(flops=flops, num_samples=8, batch_size=4, rows=16)
    pruner = OptinPruner(model)
    data = tiny_samples(8)
    pruned = pruner.prune(data, config)
    groups = find_groups(model)
    batches = calibration_batches(data, model, num_samples=8, batch_size=4)
    with frozen(model):
        by_hand = _by_hand(model, groups, batches, config)
    costs = cost_tables(model, groups, pruner.scores.tokens)
    total = sum(float(table[-1]) for table in costs.values())
    gone = _best(by_hand, costs, flops * total)
    kept = {key: set(entry.kept) for key, entry in structure_of_model(pruned).items()}
    found = {(group.key, unit) for group in groups for unit in range(group.units) if unit not in kept[group.key]}
    assert found == gone and gone
    kept_as_is = dict(model.named_parameters())["classifier.weight"]
    assert torch.equal(pruned.classifier.weight, kept_as_is), "nothing is refitted"


def test_fields_may_differ_from_it():
    config = OptinConfig.paper(flops=0.4, output_weight=0.0)
    assert (config.flops, config.output_weight, config.scorer, config.search) == (0.4, 0.0, "exact", "ranked")
    assert (config.compensation, config.merging, config.min_heads) == ("none", "none", 0)
    assert OptinConfig.paper() != OptinConfig() and OptinConfig.paper().flops == OptinConfig().flops
    with pytest.raises(ValueError, match=r"flops=1\.4 must be"):
        OptinConfig.paper(flops=1.4)


@pytest.mark.parametrize("command", ["prune", "score"])
def test_it_is_a_preset_of_the_command_line(command):
    parser = make_parser(command)
    words = ["m", "--output", "o", "--preset", "paper", "--num-samples", "32"]
    assert load_config(parser.parse_args(words)) == OptinConfig.paper(num_samples=32)
    with pytest.raises(SystemExit):
        parser.parse_args([*words[:3], "--preset", "papers"])
