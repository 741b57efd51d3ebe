"""The configuration: round trips, and values that do not fit."""

import copy
import dataclasses
import json
import pickle

import numpy as np
import pytest
import torch

from optimum_optin import OptinConfig
from optimum_optin.architectures.group import Group
from optimum_optin.search.candidates import floors_of


def test_round_trips(tmp_path):
    config = OptinConfig(flops=0.45, probes=7, max_length=20, output_weight=0.5, floors={"heads": 2, "channels": 8})
    assert OptinConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config.save_pretrained(tmp_path)
    assert OptinConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flops": 0}, r"flops=0 must be in \(0, 1\]"),
        ({"flops": 1.4}, r"flops=1\.4 must be in \(0, 1\]"),
        ({"flops": -0.1}, r"flops=-0\.1"),
        ({"flops": float("nan")}, "flops=nan"),
        ({"flops": "0.6"}, r"flops='0\.6'"),
        ({"output_weight": float("nan")}, "output_weight=nan"),
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
    groups = [Group("layers.0", "heads", 2, 1, "a", ())]
    groups += [Group("layers.0", role, 9, 1, "b", (), config_fields=("size",)) for role in ("neurons", "channels")]
    found = floors_of(OptinConfig(**settings), groups)
    assert {role: found[role] for role in floors} == floors


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="unknown field flop; OptinConfig has .*flops"):
        OptinConfig.from_dict({"flop": 0.5})
