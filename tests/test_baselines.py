"""Other papers' methods in the quality benchmark, against brute force and a model with spare units."""

import importlib
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny import random_masks, tiny_batch, tiny_model

from optimum_optin.compensation.ridge import Regression
from optimum_optin.discovery.find import find_groups
from optimum_optin.inputs.probes import mean_tokens
from optimum_optin.pricing.macs import cost_tables, dense_cost, kept_cost, total_cost
from optimum_optin.running.batch import samples_in
from optimum_optin.scoring import registry
from optimum_optin.storage.entry import schedule_of_model

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "benchmarks"))
import kprune
import kwon
from tasks import LabelledBatch


@pytest.fixture(name="model")
def spare_neuron_model():
    """Neuron 1 of layer 1 repeats neuron 0."""
    model = tiny_model()
    layer = model.bert.encoder.layer[1]
    with torch.no_grad():
        for parameter in (layer.intermediate.dense.weight, layer.intermediate.dense.bias):
            parameter[1] = parameter[0]
        layer.output.dense.weight[:, 1] = layer.output.dense.weight[:, 0]
    return model


def without_spare(groups):
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks["layers.1.neurons"][1] = False
    return masks


def test_mask_tuning_doubles_the_neuron_whose_twin_goes(model):
    batches, groups = [tiny_batch(model, seed=seed, samples=8) for seed in range(4)], find_groups(model)
    pruned = kwon.tune_masks(model, groups, without_spare(groups), batches)
    for batch in batches:
        torch.testing.assert_close(pruned(**batch).logits, model(**batch).logits, atol=1e-3, rtol=1e-3)


def test_label_gradients_are_those_of_single_examples():
    model, batch = tiny_model(), tiny_batch(tiny_model(), samples=4)
    groups, labels = find_groups(model), torch.tensor([0, 2, 1, 0])

    def losses(targets):
        return lambda outputs: torch.nn.functional.cross_entropy(outputs.logits, targets, reduction="none")

    together = kwon.label_gradients(model, groups, [LabelledBatch(batch, 4, losses(labels))])
    for index in range(4):
        one = {name: value[index : index + 1] for name, value in batch.items()}
        alone = kwon.label_gradients(model, groups, [LabelledBatch(one, 1, losses(labels[index : index + 1]))])
        for key, gradient in together.items():
            torch.testing.assert_close(gradient[index], alone[key][0], atol=1e-6, rtol=1e-4)


def test_examples_of_two_rows_share_a_mask():
    model, batch = tiny_model(base=True), tiny_batch(tiny_model(), samples=4)
    pairs = LabelledBatch(batch, 2, lambda outputs: outputs.last_hidden_state[:, 0].square().sum(-1).view(2, 2).sum(1))
    rows = LabelledBatch(batch, 4, lambda outputs: outputs.last_hidden_state[:, 0].square().sum(-1))
    groups = find_groups(model)
    by_pair, by_row = (kwon.label_gradients(model, groups, [each]) for each in (pairs, rows))
    for key, gradient in by_pair.items():
        torch.testing.assert_close(gradient, by_row[key].view(2, 2, -1).sum(1), atol=1e-5, rtol=1e-4)


def test_no_exchange_of_two_units_improves_a_rearranged_mask():
    generator = torch.Generator().manual_seed(0)
    gradients = torch.randn(5, 9, generator=generator).double()
    block, mask = kwon.fisher(gradients), torch.arange(9) < 5

    def loss(mask):
        removed = (~mask).double()
        return float(removed @ block @ removed)

    better = kwon.rearrange(mask, block)
    assert better.sum() == mask.sum() and loss(better) < loss(mask)
    for out, into in product(better.nonzero().flatten(), (~better).nonzero().flatten()):
        changed = better.clone()
        changed[out], changed[into] = False, True
        assert loss(changed) >= loss(better) - 1e-12


def test_weight_tuning_is_least_squares():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = (torch.randn(200, size, generator=generator) for size in (6, 4))
    sums = Regression(6, 4)
    sums.add(inputs, targets)
    columns = torch.tensor([True, False, True, True, False, True])
    expected = torch.linalg.lstsq(inputs[:, columns], targets).solution.T
    tuned = kprune.tuned_weight(torch.randn(4, 6, generator=generator), columns, sums)
    torch.testing.assert_close(tuned.float(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("base", [False, True], ids=["logits", "embeddings"])
def test_kprune_meets_the_budget_and_leaves_the_dense_model_alone(base):
    model = tiny_model(base=base)
    batches, groups = [tiny_batch(model, seed=seed) for seed in range(3)], find_groups(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    costs = cost_tables(model, groups, 10)
    pruned, masks = kprune.prune_by_knowledge(model, groups, batches, costs, 0.5 * dense_cost(costs))
    assert 0.4 < kept_cost(costs, masks) / dense_cost(costs) <= 0.5
    assert {group.key: group.units for group in find_groups(pruned)} == {
        key: int(mask.sum()) for key, mask in masks.items() if mask.any()
    }
    assert pruned(**batches[0])[0].isfinite().all()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_kprune_with_the_whole_budget_changes_nothing():
    model = tiny_model()
    batches, groups = [tiny_batch(model)], find_groups(model)
    costs = cost_tables(model, groups, 10)
    pruned, masks = kprune.prune_by_knowledge(model, groups, batches, costs, dense_cost(costs))
    assert all(mask.all() for mask in masks.values())
    torch.testing.assert_close(pruned(**batches[0]).logits, model(**batches[0]).logits, atol=1e-3, rtol=1e-3)


def test_mask_tuning_keeps_ones_where_nothing_is_left_to_fit():
    model = tiny_model()
    groups = find_groups(model)
    masks = random_masks(groups)
    masks["layers.0.heads"][:] = False
    pruned = kwon.tune_masks(model, groups, masks, [tiny_batch(model, samples=8)])
    assert pruned(**tiny_batch(model)).logits.isfinite().all()


@pytest.fixture(name="table", scope="module")
def table_of_methods():
    """The module with the table, whose scorers are registered while these tests run and not beyond."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_SCORERS", dict(registry._SCORERS))
        yield importlib.import_module("baselines")


@pytest.mark.parametrize(("architecture", "data"), [("bert", "texts"), ("vit", "images")])
def test_every_method_that_applies_meets_the_budget(architecture, data, table):
    from quality import applicable  # imports the table, too

    model = tiny_model(architecture)
    batches, groups = [tiny_batch(model, seed=seed) for seed in range(3)], find_groups(model)

    def losses(outputs):
        return -outputs.logits.log_softmax(-1)[:, 0]

    labelled = [LabelledBatch(batch, samples_in(batch), losses) for batch in batches]
    tokens = mean_tokens(batches, model)
    problem = table.Problem(model, groups, batches, lambda: labelled, cost_tables(model, groups, tokens), seed=0)
    names = applicable(table.METHODS, data)
    assert {"texts": "kwon", "images": "tokens"}[data] in names
    for name in names:
        found = table.METHODS[name].prepare(problem)(0.7 * problem.dense_cost)
        schedule = schedule_of_model(found.own()) if table.METHODS[name].own else None
        assert total_cost(model, groups, tokens, schedule, found.masks) <= 0.7 * problem.dense_cost * (1 + 1e-9), name
