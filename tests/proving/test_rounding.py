"""What rounding leaves in a deep model is no fault of a cut: a trial that fails in float32 is made again in float64."""

from dataclasses import replace

import pytest
import torch
from tiny import tiny_batch, tiny_model

from optimum_optin import find_groups
from optimum_optin.proving import cuts
from optimum_optin.proving.cuts import cut_trials
from optimum_optin.running.freezing import frozen

TIGHT = 1e-11  # no two ways to compute the same in float32 agree so far


@pytest.mark.parametrize("model_type", ["bert", "vit"])
def test_cuts_that_differ_by_rounding_are_right(model_type, monkeypatch):
    model = tiny_model(model_type)
    groups, sample = find_groups(model), tiny_batch(model)
    with frozen(model), torch.no_grad():
        found = cut_trials(model, groups, sample, TIGHT)
        assert {trial.problem for trial in found.values()} == {None}
        assert max(trial.largest for trial in found.values()) < TIGHT
        monkeypatch.setattr(cuts, "_is_single", lambda model: False)
        assert any(trial.problem for trial in cut_trials(model, groups, sample, TIGHT).values())
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_cuts_that_are_wrong_are_wrong_in_float64_too():
    model = tiny_model("bert")
    groups, sample = find_groups(model), tiny_batch(model)
    first, *others = groups
    wrong = replace(groups, members=(replace(first, cut=replace(first.cut, writes=first.cut.writes[:1])), *others))
    with frozen(model), torch.no_grad():
        found = cut_trials(model, wrong, sample, TIGHT)
    assert found[first.key].problem is not None
