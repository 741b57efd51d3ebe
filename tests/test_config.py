"""The configuration: round trips, and values that do not fit."""

import json

import pytest

from optimum_optin import OptinConfig


def test_round_trips(tmp_path):
    config = OptinConfig(flops=0.45, probes=7, max_length=20, output_weight=0.5)
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
        ({"scorer": 3}, "scorer=3"),
        ({"layout": "even"}, "layout='even' must be 'free' or 'uniform'"),
        ({"remote_code": "yes"}, "remote_code='yes' must be True or False"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_values_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        OptinConfig(**change)


def test_unknown_fields_are_named():
    with pytest.raises(ValueError, match="unknown field flop; OptinConfig has .*flops"):
        OptinConfig.from_dict({"flop": 0.5})
