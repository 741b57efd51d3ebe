"""The configuration: round trips, and values that do not fit."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from optimum_optin import OptinConfig
from optimum_optin.architectures.group import Consumer, Cut, Group
from optimum_optin.search.selection import limits_of


def test_round_trips(tmp_path):
    config = OptinConfig(flops=0.45, probes=7, max_length=20, output_weight=0.5, floors={"heads": 2, "channels": 8})
    chosen = {"include": ["heads"], "exclude": ["layers.0"], "keep": {"layers.1.heads": [3, 1, 3]}}
    config = dataclasses.replace(config, **chosen, ceilings={"heads": 3}, round_to={"neurons": 8})
    assert OptinConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path)
    assert OptinConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": 0}, r"flops=0 must be a share of the dense model's, in \(0, 1\]"),
        ({"flops": 1.4}, r"flops=1\.4 must be a share .* number above 0 with a unit \(KMACs, .*such as '850MMACs'"),
        ({"flops": "850M"}, "flops='850M' must be a share"),  # of what?
        ({"params": 50_000_000}, r"params=50000000 must be a share .*unit \(K, M, B\), such as '50M'"),
        ({"params": "M"}, "params='M'"),
        ({"params": "0M"}, "params='0M'"),
        ({"params": "-5M"}, "params='-5M'"),
        ({"params": "1e9M"}, "params='1e9M'"),
        ({"memory": "100"}, r"memory='100' must be .*unit \(KB, MB, GB"),
        ({"memory": True}, "memory=True"),
        ({"latency": "20"}, r"latency='20' must be .*unit \(us, ms, s\), such as '20ms'"),
        ({"latency": 0.5, "merging": (1, 0)}, "merging tokens is no part of what latency= measures"),
        ({"latency_backend": "tpu"}, "latency_backend='tpu' must be 'eager' or 'compile' or 'onnx'"),
        ({"latency_batch_size": 0}, "latency_batch_size=0"),
        ({"latency_length": 0}, "latency_length=0"),
        ({"memory_batch_size": 0}, "memory_batch_size=0"),
        ({"memory_length": 0}, "memory_length=0"),
        ({"params": 0.5, "merging": "auto"}, "merging='auto' is a part of a budget of MACs: give flops="),
        ({"flops": -0.1}, r"flops=-0\.1"),
        ({"flops": float("nan")}, "flops=nan"),
        ({"flops": "0.6"}, r"flops='0\.6'"),
        ({"output_weight": float("nan")}, "output_weight=nan"),
        ({"output_weight": 10**400}, "output_weight=1000"),
        ({"flops": 10**400}, "flops=1000"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"seed": 2**70}, "seed=1180"),
        ({"flops": True}, "flops=True"),
        ({"probes": 0}, "probes=0 must be a whole number of at least 1"),
        ({"batch_size": 2.5}, r"batch_size=2\.5"),
        ({"rows": 1}, "rows=1 must be a whole number of at least 2"),
        ({"max_length": 0}, "max_length=0"),
        ({"temperature": 0}, "temperature=0"),
        ({"output_weight": -1}, "output_weight=-1"),
        ({"min_heads": -1}, "min_heads=-1"),
        ({"floors": 3}, "floors=3 must be numbers of units by role"),
        ({"floors": ["heads"]}, r"floors=\['heads'\] must be"),
        ({"floors": {3: 1}}, r"floors=\{3: 1\} must be"),
        ({"floors": {"": 1}}, r"floors=\{'': 1\} must be"),
        ({"floors": {"channels": -1}}, r"floors\['channels'\]=-1 must be a whole number of at least 0"),
        ({"floors": {"channels": 1.5}}, r"floors\['channels'\]=1\.5 must be"),
        ({"floors": {"channels": True}}, r"floors\['channels'\]=True must be"),
        ({"floors": {"heads": 2}, "min_heads": 3}, r"floors\['heads'\]=2 and min_heads=3 are .*give one"),
        ({"floors": {"neurons": 2}, "min_neurons": 3}, r"floors\['neurons'\]=2 and min_neurons=3 are .*give one"),
        ({"ceilings": ["heads"]}, r"ceilings=\['heads'\] must be numbers of units by role, layer or group"),
        ({"ceilings": {"heads": -1}}, r"ceilings\['heads'\]=-1 must be a whole number of at least 0"),
        ({"round_to": 8}, r"round_to=8 must be numbers by role, such as \{'neurons': 8\}"),
        ({"round_to": {"neurons": 0}}, r"round_to\['neurons'\]=0 must be a whole number of at least 1"),
        ({"exclude": "layers.0"}, r"exclude='layers\.0' must be a list of .*'\*\.heads'"),
        ({"exclude": [0]}, r"exclude=\[0\] must be a list"),
        ({"include": {"heads": 1}}, r"include=\{'heads': 1\} must be a list"),
        ({"include": [""]}, r"include=\[''\] must be a list"),
        ({"include": []}, r"include=\[\] leaves nothing to prune"),
        ({"keep": ["layers.0"]}, r"keep=\['layers\.0'\] must be units by group, such as"),
        ({"keep": {"layers.0.heads": 3}}, r"keep\['layers\.0\.heads'\]=3 must be a list of units"),
        ({"keep": {"layers.0.heads": "03"}}, r"keep\['layers\.0\.heads'\]='03' must be a list of units"),
        ({"keep": {"layers.0.heads": [-1]}}, r"keep\['layers\.0\.heads'\]=-1 must be a whole number of at least 0"),
        ({"keep": {"layers.0.heads": [True]}}, r"keep\['layers\.0\.heads'\]=True must be"),
        ({"scorer": 3}, "scorer=3"),
        ({"layout": "even"}, "layout='even' must be 'free' or 'uniform'"),
        ({"remote_code": "yes"}, "remote_code='yes' must be True or False"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_values_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        OptinConfig(**change)


def test_floors_stay_as_they_were_checked():
    given = {"heads": torch.tensor(2), "channels": np.int64(8)}
    config = OptinConfig(floors=given)
    given["heads"] = -1
    for change in (lambda: config.floors.update(heads=3), lambda: config.floors.__setitem__("heads", 3)):
        with pytest.raises(TypeError, match="a configuration cannot be changed"):
            change()
    config.to_dict()["floors"]["heads"] = 9
    assert config.floors == {"channels": 8, "heads": 2}
    for same in (copy.deepcopy(config), pickle.loads(pickle.dumps(config)), OptinConfig.from_dict(config.to_dict())):
        assert same == config and hash(same) == hash(config)
    other = dataclasses.replace(config, floors={"heads": 2})
    assert other != config and len({config, other, OptinConfig(floors={"channels": 8, "heads": 2})}) == 2


def test_what_may_go_stays_as_it_was_checked():
    units, names = torch.tensor([5, 0, 5]), ["layers.0"]
    config = OptinConfig(keep={"layers.3.heads": units}, exclude=names)
    names.append("heads")
    units[0] = 7
    assert (config.keep, config.exclude) == ({"layers.3.heads": (0, 5)}, ("layers.0",))
    with pytest.raises(TypeError, match="a configuration cannot be changed"):
        config.keep["layers.3.heads"] = (1,)
    data = config.to_dict()
    assert json.loads(json.dumps(data)) == data | {"merging": "none"}
    data["keep"]["layers.3.heads"].append(9)
    assert config.to_dict()["keep"] == {"layers.3.heads": [0, 5]}
    assert len({config, OptinConfig.from_dict(config.to_dict()), OptinConfig()}) == 2


@pytest.mark.parametrize(
    ("settings", "floors"),
    [
        ({}, {"heads": 1, "neurons": 0}),
        ({"min_heads": 2, "min_neurons": 3}, {"heads": 2, "neurons": 3}),
        ({"floors": {"heads": 0, "channels": 8}, "min_neurons": 3}, {"heads": 0, "neurons": 3, "channels": 8}),
        ({"floors": {"neurons": 9}}, {"heads": 1, "neurons": 9}),
        ({"floors": {"channels": 4}, "layout": "uniform"}, {"heads": 2, "neurons": 1, "channels": 4}),
    ],
    ids=["default", "two", "three", "one", "uniform"],
)
def test_floors_of_roles_take_the_place_of_the_two_older_fields(settings, floors):
    cut = Cut((Consumer("a"),), ())
    groups = [Group("layers.0", "heads", 2, 1, cut)]
    groups += [Group("layers.0", role, 9, 1, cut, config_fields=("size",)) for role in ("neurons", "channels")]
    limits = limits_of(OptinConfig(**settings), groups)
    found = {key.removeprefix("layers.0."): limit.least for key, limit in limits.items()}
    assert {role: found[role] for role in floors} == floors


MERGING = [("auto", "auto"), ("none", "none"), ([4, 2, 0], (4, 2, 0)), (np.array([4, 0]), (4, 0))]


@pytest.mark.parametrize(("value", "merging"), MERGING, ids=["auto", "none", "numbers", "array"])
def test_merging_is_given_and_read_by_its_earlier_name_with_a_warning(value, merging):
    for make in (
        lambda: OptinConfig(tokens=value, seed=3),
        lambda: OptinConfig(tokens=value, merging=value, seed=3),
        lambda: dataclasses.replace(OptinConfig(), tokens=value, seed=3),
        lambda: dataclasses.replace(OptinConfig(seed=3), tokens=value, merging=value),
    ):
        with pytest.warns(FutureWarning, match="tokens of OptinConfig is called merging now"):
            config = make()
        assert config == OptinConfig(merging=merging, seed=3) and hash(config) == hash(
            OptinConfig(merging=merging, seed=3)
        )
        with pytest.warns(FutureWarning, match="called merging now") as caught:
            assert config.tokens == merging
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.filterwarnings("ignore:the field tokens")
def test_merging_and_its_earlier_name_must_not_differ():
    for make in (
        lambda: dataclasses.replace(OptinConfig(merging="auto"), tokens="none"),
        lambda: OptinConfig(tokens=[4, 0], merging=[4, 2]),
        lambda: dataclasses.replace(OptinConfig(), tokens="none", merging="auto"),
        lambda: OptinConfig.from_dict({"tokens": "auto", "merging": [4, 0]}),
    ):
        with pytest.raises(ValueError, match="tokens=.* and merging=.* are one field: give merging alone"):
            make()
    with pytest.raises(ValueError, match="merging=None must be"):
        OptinConfig(tokens=None)
    with pytest.raises(TypeError):
        OptinConfig(0.5, token="auto")


@pytest.mark.filterwarnings("error")
def test_a_configuration_of_an_earlier_version_is_read_without_a_warning(tmp_path):
    config = OptinConfig(merging=[4, 2, 0], flops=0.5)
    assert "tokens" not in config.to_dict() and dataclasses.replace(config, seed=1).merging == (4, 2, 0)
    earlier = config.to_dict()
    earlier["tokens"] = earlier.pop("merging")
    assert OptinConfig.from_dict(earlier) == config
    (tmp_path / "optin_config.json").write_text(json.dumps(earlier))
    assert OptinConfig.from_pretrained(tmp_path) == config
    assert "tokens" in earlier, "what was handed in stays"


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="unknown field flop; OptinConfig has .*flops"):
        OptinConfig.from_dict({"flop": 0.5})
