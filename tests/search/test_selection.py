"""What may go: names in the configuration as limits of groups, refused if the model lacks them, and kept to."""

import dataclasses

import pytest
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, PruningReport
from optimum_optin.architectures.group import Consumer, Cut, Group
from optimum_optin.publishing.card_text import card_text
from optimum_optin.scoring import registry
from optimum_optin.search.limits import Limit
from optimum_optin.search.selection import limits_of
from optimum_optin.storage.entry import structure_of_model

GROUPS = [
    Group(f"layers.{layer}", role, units, 1, Cut((Consumer("a"),), ()), config_fields=("size",))
    for layer in (0, 1, 10)
    for role, units in (("heads", 4), ("neurons", 20))
]
FREE = {"heads": Limit(1), "neurons": Limit(0)}
WHOLE = {"heads": Limit(4), "neurons": Limit(20)}


def _whole(config):
    """Keys of the groups that keep all their units."""
    limits = limits_of(config, GROUPS)
    for group in GROUPS:
        assert limits[group.key] in (FREE[group.role], WHOLE[group.role])
    return [group.key for group in GROUPS if limits[group.key] == WHOLE[group.role]]


@pytest.mark.parametrize(
    ("chosen", "whole"),
    [
        ({}, ""),
        ({"exclude": ["layers.1"]}, "1.heads 1.neurons"),
        ({"exclude": ["layers.1*"]}, "1.heads 1.neurons 10.heads 10.neurons"),
        ({"exclude": ["layers.[01].heads"]}, "0.heads 1.heads"),
        ({"exclude": ["heads"]}, "0.heads 1.heads 10.heads"),
        ({"exclude": ["*.heads", "layers.0"]}, "0.heads 0.neurons 1.heads 10.heads"),
        ({"include": ["neurons", "layers.0"]}, "1.heads 10.heads"),
        ({"include": ["layers.0"], "exclude": ["heads"]}, "0.heads 1.heads 1.neurons 10.heads 10.neurons"),
        ({"exclude": ["layers.10.heads"], "ceilings": {"layers.10.heads": 2}}, "10.heads"),
    ],
    ids=str,
)
def test_names_choose_groups(chosen, whole):
    assert _whole(OptinConfig(**chosen)) == [f"layers.{name}" for name in whole.split()]


def test_the_most_specific_name_counts():
    names = {"heads": 1, "*.heads": 2, "layers.1": 3, "layers.10": 3, "layers.10.heads": 4}
    for field, number in (("floors", lambda limit: limit.least), ("ceilings", lambda limit: limit.most)):
        limits = limits_of(OptinConfig(**{field: names}), GROUPS)
        assert [number(limits[f"layers.{layer}.heads"]) for layer in (0, 1, 10)] == [2, 3, 4]
        assert number(limits["layers.1.neurons"]) == 3
    # Two patterns of the same number agree; of different ones, the group's key decides.
    assert limits_of(OptinConfig(floors={"*.heads": 2, "layers.*": 2}), GROUPS)["layers.0.heads"].least == 2
    twice = {"*.heads": 2, "layers.0*": 3}
    with pytest.raises(
        ValueError, match=r"floors\['\*\.heads'\]=2 and floors\['layers\.0\*'\]=3 both fit layers\.0\.heads"
    ):
        limits_of(OptinConfig(floors=twice), GROUPS)
    assert limits_of(OptinConfig(floors={**twice, "layers.0.heads": 1}), GROUPS)["layers.0.heads"].least == 1


def test_units_and_multiples_reach_their_groups():
    config = OptinConfig(keep={"layers.1.neurons": [7, 3]}, round_to={"neurons": 8})
    limits = limits_of(config, GROUPS)
    assert limits["layers.1.neurons"] == Limit(0, None, 8, (3, 7))
    assert limits["layers.0.neurons"] == Limit(step=8)
    assert limits["layers.1.heads"] == Limit(1)


@pytest.mark.parametrize(
    ("units", "sizes", "chosen", "step"),
    [
        (256, {}, {}, 8),
        (255, {}, {}, 1),
        (256, {"width": 2}, {}, 1),
        (256, {"multiple": 6}, {}, 24),
        (512, {"parts": 2}, {}, 16),
        (510, {"parts": 2}, {}, 1),
        (256, {}, {"round_to": {"neurons": 1}}, 1),
        (256, {}, {"round_to": {"neurons": 64}}, 64),
        # What the user asks for goes first.
        (256, {}, {"floors": {"neurons": 100}, "ceilings": {"neurons": 100}}, 1),
        (256, {}, {"floors": {"neurons": 100}, "ceilings": {"neurons": 104}}, 8),
        (256, {}, {"exclude": ["neurons"]}, 1),
        # Only transformers' own classes want the group's own step.
        (100, {"step": 4}, {}, 1),
        (100, {"step": 4}, {"layout": "uniform"}, 4),
        (300, {"step": 12, "config_fields": ("size",)}, {"layout": "uniform"}, 24),
    ],
    ids=str,
)
def test_many_neurons_go_by_eights_unless_told_otherwise(units, sizes, chosen, step):
    group = Group("layers.0", "neurons", units, cut=Cut((Consumer("a"),), ()), **{"width": 1, **sizes})
    assert limits_of(OptinConfig(**chosen), [group])[group.key].step == step


def test_what_is_neither_heads_nor_neurons_is_not_emptied():
    groups = [dataclasses.replace(GROUPS[0], role=role) for role in ("channels", "decoder_heads", "expert_neurons")]
    assert [limit.least for limit in limits_of(OptinConfig(min_heads=2), groups).values()] == [1, 2, 0]


def test_a_uniform_layout_takes_the_largest_floor_and_the_smallest_ceiling():
    config = OptinConfig(
        floors={"layers.1.heads": 2}, ceilings={"layers.0": 3}, round_to={"neurons": 3}, layout="uniform"
    )
    limits = limits_of(config, GROUPS)
    assert {limits[group.key] for group in GROUPS if group.role == "heads"} == {Limit(2, 3)}
    assert {limits[group.key] for group in GROUPS if group.role == "neurons"} == {Limit(1, 3, 3)}


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        (
            {"exclude": ["layers.9"]},
            r"exclude=\['layers\.9'\]: this model has no layers\.9; its units are heads and neurons of layers\.0, "
            r"layers\.1, layers\.10, and a group is called layers\.0\.heads\.",
        ),
        ({"include": ["layers"]}, r"include=\['layers'\]: this model has no layers;"),
        ({"floors": {"*.channels": 2}}, r"floors\['\*\.channels'\]=2: this model has no \*\.channels;"),
        ({"ceilings": {"layers.9.heads": 2}}, r"ceilings\['layers\.9\.heads'\]=2: this model has no layers\.9\.heads;"),
        ({"round_to": {"channels": 8}}, r"round_to\['channels'\]=8: this model has no role channels;"),
        ({"round_to": {"layers.0": 8}}, r"this model has no role layers\.0;"),
        ({"keep": {"heads": [0]}}, r"keep\['heads'\]=\[0\]: this model has no group heads;"),
        ({"keep": {"layers.0.heads": [0, 4]}}, r"keep\['layers\.0\.heads'\]=\[0, 4\]: .* has 4 units, 0 to 3\."),
        ({"ceilings": {"heads": 0}}, "at least 1 and at most 0 are to stay. Change floors"),
        ({"ceilings": {"neurons": 7}, "floors": {"neurons": 1}, "round_to": {"neurons": 8}}, "in multiples of 8"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_the_model_does_not_have_is_refused(chosen, message):
    with pytest.raises(ValueError, match=message):
        limits_of(OptinConfig(**chosen), GROUPS)


# End to end: a tiny BERT has 4 heads and 48 neurons in each of 3 layers.

FAST = OptinConfig(flops=0.5, probes=8)


@pytest.fixture(scope="module")
def pruner():
    return OptinPruner(tiny_model())


@pytest.fixture(scope="module")
def scores(pruner):
    return pruner.score(tiny_samples(), FAST)


def test_pruning_keeps_to_what_may_go(pruner, scores, tmp_path):
    removed = {}
    for key, entry in structure_of_model(pruner.prune(scores=scores)).items():
        removed[key] = sorted({*range(entry.units)} - {*entry.kept})
    config = dataclasses.replace(
        FAST,
        exclude=["layers.0"],
        keep={"layers.1.heads": removed["layers.1.heads"][:1], "layers.2.neurons": removed["layers.2.neurons"][:5]},
        ceilings={"layers.2.heads": 1},
        round_to={"neurons": 8},
    )
    pruned = pruner.prune(scores=scores, config=config, save_dir=tmp_path / "pruned")
    structure, report = structure_of_model(pruned), pruner.report
    assert 0.4 < report.flops_achieved <= 0.5
    for layers in (report.layers, pruner.plan(scores, config=config).layers):
        assert layers["layers.0"] == {"heads": {"kept": 4, "units": 4}, "neurons": {"kept": 48, "units": 48}}
        assert layers["layers.2"]["heads"]["kept"] == 1
        assert all(roles["neurons"]["kept"] % 8 == 0 for roles in layers.values())
    for key, units in config.keep.items():
        assert units and {*units} <= {*structure[key].kept}
    assert OptinConfig.from_dict(PruningReport.load(tmp_path / "pruned").config) == config


def test_the_card_makes_the_configuration_again(pruner, scores, tmp_path):
    chosen = {
        "exclude": ["layers.0", "*.1.heads"],
        "keep": {"layers.2.heads": [0, 2]},
        "floors": {"layers.2.heads": 2, "heads": 1},
        "ceilings": {"layers.2": 40},
        "round_to": {"neurons": 8},
    }
    pruner.prune(scores=scores, config=dataclasses.replace(FAST, flops=0.7, compensation="none", **chosen))
    pruner.report.save(tmp_path)
    for report in (pruner.report, PruningReport.load(tmp_path)):
        text = card_text(pruner.pruned_model, report, name="pruned")
        (line,) = [line for line in text.splitlines() if line.startswith("config = ")]
        assert 'exclude=["layers.0", "*.1.heads"]' in line and 'keep={"layers.2.heads": [0, 2]}' in line
        assert "include" not in line
        assert eval(line.removeprefix("config = ")) == OptinConfig.from_dict(report.config)


def test_a_budget_beside_what_is_excluded_is_refused_before_scoring(pruner, monkeypatch):
    monkeypatch.setitem(registry._SCORERS, "surgeon", None)
    for layout, whole in (
        ("free", "layers.0.heads, layers.0.neurons"),
        ("uniform", "layers.2.heads, layers.2.neurons"),
    ):
        config = dataclasses.replace(FAST, flops=0.3, exclude=["layers.0"], layout=layout)
        with pytest.raises(ValueError, match=rf"a budget of 0\.3 .* exclude less.* What must stay whole: .*{whole}\.$"):
            pruner.prune(tiny_samples(), config)
    with pytest.raises(ValueError, match=r"this model has no layers\.7"):
        pruner.check(OptinConfig(exclude=["layers.7"]))


def test_the_uniform_number_is_a_multiple(pruner, scores):
    # All heads stay, for BERT's config has no size of their own: 0.6 of the MACs.
    config = dataclasses.replace(FAST, flops=0.8, layout="uniform", keep={"layers.0.neurons": [3, 4]})
    sizes = []
    for multiple in (1, 16):
        pruned = pruner.prune(scores=scores, config=dataclasses.replace(config, round_to={"neurons": multiple}))
        assert 0.7 < pruner.report.flops_achieved <= 0.8
        sizes.append(pruned.config.intermediate_size)
    assert sizes == [23, 16]


def test_layers_that_are_excluded_merge_tokens_all_the_same():
    model = tiny_model("vit")
    pruner = OptinPruner(model)
    config = dataclasses.replace(FAST, merging=[4, 2, 0], exclude=["layers.0"], search="ranked", compensation="none")
    pruner.prune(tiny_samples(8, model=model), config)
    assert pruner.report.merges["layers.0"] == 4
    assert pruner.report.layers["layers.0"]["neurons"]["kept"] == 48
    assert pruner.report.flops_achieved <= 0.5


def test_units_are_those_of_the_model_as_it_is(pruner, scores):
    again = OptinPruner(pruner.prune(scores=scores, config=dataclasses.replace(FAST, ceilings={"layers.1.heads": 2})))
    with pytest.raises(ValueError, match=r"keep\['layers\.1\.heads'\]=\[3\]: layers\.1\.heads has 2 units, 0 to 1\."):
        again.check(OptinConfig(keep={"layers.1.heads": [3]}))
