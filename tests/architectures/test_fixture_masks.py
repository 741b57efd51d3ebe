"""Groups, scores and masks of all tiny forms, against those of commit a144519 (`fixtures/make_masks.py`)."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from tiny import CASES, tiny_model, tiny_samples

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.storage.entry import structure_of_model
from optimum_optin.storage.structure import structure_to_json

EXPECTED = json.loads((Path(__file__).parents[1] / "fixtures" / "masks.json").read_text(encoding="utf-8"))
CONFIG = OptinConfig(flops=0.5, probes=8)
SETTINGS = {
    "default": CONFIG,
    "ranked": dataclasses.replace(
        CONFIG, search="ranked", compensation="none", output_weight=0.3, round_to={"neurons": 4}
    ),
}


def _described(group):
    """A group in plain data, as the fixture has it."""
    paths = {producer.path for producer in group.producers}
    return {
        "units": group.units,
        "width": group.width,
        "consumer": group.consumer,
        "producers": {producer.path: producer.parts for producer in group.producers},
        "tables": {part.tensor: part.dim for part in group.cut.writes if part.tensor.rpartition(".")[0] not in paths},
    }


def test_there_is_an_answer_for_every_form():
    assert list(EXPECTED) == CASES


@pytest.mark.parametrize("case", CASES, ids=CASES)
def test_groups_scores_and_masks_are_those_of_the_fixture(case, monkeypatch):
    # At that commit, every probe had one of the trajectory.
    monkeypatch.setattr("optimum_optin.scoring.surgeon._probes_trajectory", lambda probe, batches: True)
    expected = EXPECTED[case]
    pruner = OptinPruner(tiny_model(case, seed=expected["seed"]))
    groups = list(find_groups(pruner.model))
    assert [group.key for group in groups] == list(expected["groups"])  # in the same order, too
    assert {group.key: _described(group) for group in groups} == expected["groups"]

    samples = tiny_samples(model=pruner.model)
    scores = pruner.score(samples, CONFIG)
    assert {term: list(of_term) for term, of_term in scores.terms.items()} == {
        term: list(of_term) for term, of_term in expected["scores"].items()
    }
    for term, of_term in expected["scores"].items():
        for key, stored in of_term.items():
            values = torch.tensor(stored, dtype=torch.double)
            error = (scores.terms[term][key] - values).abs().max()
            assert error <= 1e-3 * values.max(), f"{term} of {key} is off by {error:.3g}, the largest is {values.max()}"

    for name, config in SETTINGS.items():
        kept = structure_to_json(structure_of_model(pruner.prune(samples, config, scores=scores)))
        assert {key: entry["kept"] for key, entry in kept.items()} == expected["masks"][name], name
