"""Runs of scoring to kill and to resume: tiny models of every kind of sums."""

from dataclasses import dataclass
from functools import partial
from unittest import mock

from expert_models import expert_model, token_batches
from tiny import tiny_model, tiny_samples

from optimum_optin import OptinConfig
from optimum_optin.discovery.find import find_groups
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate
from optimum_optin.scoring import score, surgeon


@dataclass(frozen=True)
class Case:
    """A model, a configuration, the room for sums in bytes, and between how many passes it is killed."""

    make: callable
    config: OptinConfig
    room: int = 2**30
    stride: int = 2


_small = partial(tiny_model, intermediate_size=6, num_hidden_layers=2)
CASES = {
    "surgeon": Case(_small, OptinConfig(probes=8, batch_size=4)),
    "surgeon in parts": Case(_small, OptinConfig(probes=8, batch_size=6), room=1, stride=5),
    "experts": Case(partial(expert_model, "mixtral", num_hidden_layers=1), OptinConfig(probes=4)),
    "gauss_newton": Case(_small, OptinConfig(scorer="gauss_newton", probes=6, batch_size=4)),
    "exact": Case(_small, OptinConfig(scorer="exact", batch_size=12), stride=14),
    "merges": Case(partial(_small, "vit"), OptinConfig(scorer="gauss_newton", probes=2, merging="auto"), stride=7),
}


def prepared(case):
    """A case's model, whose groups are found, and a function that scores it, with a work folder or without."""
    chosen = CASES[case]
    model, config = chosen.make(), chosen.config
    batches = token_batches(4)
    if case != "experts":
        batches = calibration_batches(tiny_samples(24, model=model), model, batch_size=config.batch_size)
    groups, calibration = find_groups(model), calibrate(model, batches)

    def run(work):
        with mock.patch.object(surgeon, "room_for", lambda model: chosen.room):
            return score(model, groups, calibration, config, work)

    return model, run
