"""layout='uniform': equal numbers in every layer, loaded by transformers alone."""

import copy
import re
from operator import attrgetter
from pathlib import Path

import pytest
import torch
from problems import gained, problem, spent
from test_remote_code import BATCH, batch_for, load_alone
from tiny import TINY, load, output_of, tiny_model, tiny_samples
from torch import nn
from transformers import AutoConfig, AutoModelForSequenceClassification, LlamaConfig, LlamaModel

from optimum_optin import (
    OptinConfig,
    OptinPruner,
    Stack,
    find_groups,
    heads,
    known_architectures,
    neurons,
    register_architecture,
)
from optimum_optin.architectures import registry as architectures
from optimum_optin.architectures.group import Consumer, Cut, Group, stack_of
from optimum_optin.architectures.registry import row_of
from optimum_optin.editing.surgery import rewrite
from optimum_optin.search.masks import search_uniform
from optimum_optin.storage.uniform import record_sizes, uniform_floors

# DINOv2's and Swin's configs have no size of their own for neurons; SigLIP's size is that of the pooling head, too.
INEXPRESSIBLE = ["dinov2", "dinov2_with_registers", "siglip", "siglip_vision_model", "swin", "swinv2"]
ARCHITECTURES = [name for name in known_architectures() if name not in INEXPRESSIBLE]
each_architecture = pytest.mark.parametrize("model_type", ARCHITECTURES, ids=ARCHITECTURES)
DOCS = Path(__file__).parents[2] / "docs"


def _best_by_brute_force(scores, costs, budget, floors):
    """The most that equal counts per role can gain: every pair of counts, the top units of each group by a loop."""
    best = -1.0
    sizes = {role: max(len(score) for key, score in scores.items() if key.endswith(role)) for role in floors}
    for head_count in range(floors["heads"], sizes["heads"] + 1):
        for neuron_count in range(floors["neurons"], sizes["neurons"] + 1):
            counts = {"heads": head_count, "neurons": neuron_count}
            masks = {}
            for key, score in scores.items():
                ranked = sorted(range(len(score)), key=lambda unit, score=score: -float(score[unit]))
                masks[key] = torch.zeros(len(score), dtype=torch.bool)
                masks[key][ranked[: counts[key.split(".")[-1]]]] = True
            if spent(masks, costs) <= budget:
                best = max(best, gained(masks, scores))
    return best


@pytest.mark.parametrize("floors", [{"heads": 0, "neurons": 0}, {"heads": 1, "neurons": 2}, {"heads": 3, "neurons": 1}])
@pytest.mark.parametrize("share", [0.7, 0.85, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_search_is_optimal_among_equal_counts(seed, share, floors):
    scores, costs = problem(seed, heads=(4, 4, 4), neurons=(6, 6, 6))
    budget = share * sum(float(table[-1]) for table in costs.values())
    masks = search_uniform(scores, costs, budget, floors)
    for role, floor in floors.items():
        counts = {int(mask.sum()) for key, mask in masks.items() if key.endswith(role)}
        assert len(counts) == 1
        assert min(counts) >= floor
    assert spent(masks, costs) <= budget * (1 + 1e-9)
    assert gained(masks, scores) == pytest.approx(_best_by_brute_force(scores, costs, budget, floors))


def test_floors_of_roles_that_the_configuration_does_not_name():
    """At least one unit stays of a role whose size can be written to the config, and all of another."""
    groups = [
        Group("layers.0", "channels", 6, 1, Cut((Consumer("a"),), ()), config_fields=("hidden_channels",)),
        Group("layers.0", "experts", 4, 1, Cut((Consumer("b"),), ())),
        Group("layers.1", "experts", 5, 1, Cut((Consumer("c"),), ())),
    ]
    assert uniform_floors(groups, {"heads": 0}) == {"heads": 1, "channels": 1, "experts": 5}
    assert uniform_floors(groups, {"channels": 2}) == {"channels": 2, "experts": 5}


def test_ties_go_to_the_earlier_unit():
    scores = {"layers.0.neurons": torch.ones(4), "layers.1.neurons": torch.ones(4)}
    masks = search_uniform(scores, dict.fromkeys(scores, torch.arange(5.0)), 4.0)
    assert [mask.tolist() for mask in masks.values()] == [[True, True, False, False]] * 2


@pytest.fixture(scope="module")
def pruned():
    """model type -> the pruner of a tiny model, after a uniform pruning."""
    pruners = {}
    for model_type in ARCHITECTURES:
        model = tiny_model(model_type)
        pruners[model_type] = OptinPruner(model)
        pruners[model_type].prune(tiny_samples(model=model), OptinConfig(flops=0.7, probes=8, layout="uniform"))
    return pruners


@pytest.fixture(scope="module")
def alone(pruned, tmp_path_factory):
    place = tmp_path_factory.mktemp("alone")
    for model_type, pruner in pruned.items():
        pruner.save_pretrained(place / model_type)
    return place, load_alone("without", [place / model_type for model_type in pruned], place)


@each_architecture
def test_transformers_alone_loads_it(model_type, pruned, alone):
    place, results = alone
    model = pruned[model_type].pruned_model
    batch = batch_for(model)
    expected = output_of(model, batch)
    torch.testing.assert_close(output_of(load(model, place / model_type), batch), expected, atol=1e-6, rtol=0)
    if type(model).__name__.endswith("WithProjection"):  # no Auto class makes these
        expected = output_of(model.base_model, batch)
    torch.testing.assert_close(results[f"{model_type}.logits"], expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(results[f"{model_type}.tuned again"], results[f"{model_type}.tuned"], atol=1e-6, rtol=0)
    config = AutoConfig.from_pretrained(place / model_type)
    assert not hasattr(config, "quantization_config")
    assert not hasattr(config, "auto_map")


@each_architecture
def test_the_budget_is_met_and_the_report_has_the_numbers(model_type, pruned):
    report = pruned[model_type].report
    assert 0.65 < report.flops_achieved <= 0.7
    assert {roles["heads"]["kept"] for roles in report.layers.values()} == {4}  # no class takes fewer of the same width
    for stack in row_of(model_type):
        (neuron_count,) = {
            roles["neurons"]["kept"] for layer, roles in report.layers.items() if stack_of(layer) == stack.name
        }
        assert 0 < neuron_count < 48
        field = attrgetter(*stack.sublayers[1].config_fields)
        assert field(pruned[model_type].pruned_model.config) == neuron_count
        assert field(pruned[model_type].model.config) == 48  # the dense model's config is untouched


def test_pruning_again_goes_on_from_the_new_sizes(pruned, tmp_path):
    once = pruned["bert"].pruned_model
    again = OptinPruner(once)
    again.prune(tiny_samples(), OptinConfig(flops=0.9, probes=8, layout="uniform"), save_dir=tmp_path / "uniform")
    assert again.pruned_model.config.intermediate_size < once.config.intermediate_size
    again.prune(tiny_samples(), OptinConfig(flops=0.5, probes=8), save_dir=tmp_path / "free")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "free")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**BATCH).logits, again.pruned_model(**BATCH).logits, atol=1e-6, rtol=0)


def test_a_plan_is_uniform_too():
    pruner = OptinPruner(tiny_model())
    scores = pruner.score(tiny_samples(), OptinConfig(probes=4))
    plan = pruner.plan(scores, config=OptinConfig(flops=0.7, probes=4, layout="uniform"))
    assert 0.65 < plan.flops_achieved <= 0.7
    assert len({roles["neurons"]["kept"] for roles in plan.layers.values()}) == 1


def test_there_is_no_remote_code_to_save(pruned, tmp_path):
    with pytest.raises(ValueError, match="remote_code=True is for layout='free'"):
        OptinConfig(layout="uniform", remote_code=True)
    with pytest.raises(ValueError, match="remote_code=True needs a pruned structure"):
        pruned["bert"].save_pretrained(tmp_path / "out", remote_code=True)
    assert not (tmp_path / "out").exists()


def test_a_freely_pruned_model_is_refused():
    pruner = OptinPruner(tiny_model())
    free = pruner.prune(tiny_samples(), OptinConfig(flops=0.7, probes=4))
    with pytest.raises(ValueError, match="was pruned with layout='free': prune the dense model"):
        OptinPruner(free).prune(tiny_samples(), OptinConfig(flops=0.7, probes=4, layout="uniform"))


def test_a_budget_below_all_heads_is_refused_before_scoring():
    with pytest.raises(ValueError, match=r"a budget of 0\.3 .* ask for more, .* or leave layout='uniform'"):
        OptinPruner(tiny_model()).prune(tiny_samples(), OptinConfig(flops=0.3, layout="uniform"))


def test_an_architecture_without_fields_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(architectures, "_ARCHITECTURES", dict(architectures._ARCHITECTURES))
    register_architecture("my-bert", Stack("encoder.layer", (neurons(["intermediate.dense"], "output.dense"),)))
    model = tiny_model()
    model.config.model_type = "my-bert"
    with pytest.raises(ValueError, match=r"layout='uniform' cannot prune 'my-bert'.*bert, camembert, .* have them"):
        OptinPruner(model).prune(tiny_samples(), OptinConfig(flops=0.7, layout="uniform"))


def test_a_class_that_reads_a_head_width_loads_with_fewer_heads(monkeypatch, tmp_path):
    monkeypatch.setattr(architectures, "_ARCHITECTURES", dict(architectures._ARCHITECTURES))
    projections = [f"self_attn.{name}_proj" for name in "qkv"]
    fields = ("num_attention_heads", "num_key_value_heads")
    attention = heads("self_attn", "self_attn.head_dim", projections, "self_attn.o_proj", config_fields=fields)
    ffn = neurons(["mlp.gate_proj", "mlp.up_proj"], "mlp.down_proj", config_fields=("intermediate_size",))
    register_architecture("llama", Stack("layers", (attention, ffn)))
    shape = {"vocab_size": 99, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3}
    model = LlamaModel(LlamaConfig(**shape, num_attention_heads=4, num_key_value_heads=4)).eval()
    groups = find_groups(model)
    scores = {group.key: torch.rand(group.units) for group in groups}
    costs = {group.key: torch.arange(group.units + 1.0) * group.width for group in groups}
    masks = search_uniform(scores, costs, 0.5 * sum(float(table[-1]) for table in costs.values()), {"heads": 1})
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    record_sizes(pruned, groups, masks)
    assert pruned.config.num_attention_heads == pruned.config.num_key_value_heads < 4
    pruned.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(LlamaModel.from_pretrained(tmp_path)(**BATCH)[0], pruned(**BATCH)[0])


@pytest.mark.parametrize("model_type", INEXPRESSIBLE)
def test_a_model_without_a_size_for_neurons_is_refused(model_type):
    model = tiny_model(model_type)
    with pytest.raises(ValueError, match=f"layout='uniform' cannot prune '{model_type}'"):
        OptinPruner(model).prune(tiny_samples(model=model), OptinConfig(flops=0.7, layout="uniform"))


@pytest.mark.parametrize("model_type", ["bert", "modernbert"])
def test_heads_of_these_classes_cannot_be_expressed(model_type):
    """Why their rows name no field: transformers divides the hidden size by the number of heads."""
    _, base_class, config = TINY[model_type]
    fewer = base_class(type(config).from_dict({**config.to_dict(), "num_attention_heads": 2, "head_dim": 8}))
    (group,) = [group for group in find_groups(fewer) if group.key == "layers.0.heads"]
    assert (group.units, group.width) == (2, 16)


def test_the_docs_table_is_the_registry():
    page = (DOCS / "source/guides/loading.mdx").read_text(encoding="utf-8")
    table = re.findall(r"^\| `([\w-]+)` \| (yes|no) \| (yes|no) \|$", page, flags=re.MULTILINE)
    expected = []
    for name in known_architectures():
        fields = {sublayer.role: sublayer.config_fields for stack in row_of(name) for sublayer in stack.sublayers}
        expected.append((name, *("yes" if fields[role] else "no" for role in ("heads", "neurons"))))
    assert sorted(table) == expected


def test_a_plain_module_is_refused_before_it_is_traced(monkeypatch):
    monkeypatch.setattr("optimum_optin.discovery.find.discover", None)
    module = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    pruner = OptinPruner.from_model(module, torch.randn(2, 8))
    with pytest.raises(ValueError, match="layout='uniform' cannot prune this Sequential: it writes the sizes"):
        pruner.check(OptinConfig(flops=0.5, layout="uniform"))
