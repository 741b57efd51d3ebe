"""How models are run to be compared: how often, in which mode, by which process, and what is kept of the dense one."""

import copy

import pytest
import torch
from tiny import random_masks, tiny_batch, tiny_model

from optimum_optin import find_groups
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import calibrate
from optimum_optin.search import divergence
from optimum_optin.search.divergence import measure_divergence


@pytest.fixture
def pair():
    """A dense model, its groups, and two cut copies."""
    dense, cuts = tiny_model().eval(), []
    groups = find_groups(dense)
    for seed in range(2):
        cuts.append(copy.deepcopy(dense))
        rewrite(cuts[-1], groups, random_masks(groups, seed=seed))
    return dense, groups, cuts


def _batches(dense, count=3):
    return calibrate(dense, [tiny_batch(dense, seed=seed) for seed in range(count)])


def _runs(monkeypatch):
    """The models that run from now on, each time that they do."""
    ran = []
    compared = divergence.compared_output
    monkeypatch.setattr(divergence, "compared_output", lambda model, *rest: ran.append(model) or compared(model, *rest))
    return ran


@torch.no_grad()
def _expected(dense, cut, calibration):
    teacher, student = (
        torch.cat([model(**batch).logits for batch in calibration]).double().log_softmax(-1) for model in (dense, cut)
    )
    return float((teacher.exp() * (teacher - student)).sum(-1).mean())


def test_what_the_dense_model_returned_is_kept_for_the_next_comparison(pair, monkeypatch):
    dense, groups, cuts = pair
    calibration, ran = _batches(dense), _runs(monkeypatch)
    both = measure_divergence(dense, cuts, groups, calibration)
    assert [sum(each is model for each in ran) for model in (dense, *cuts)] == [3, 3, 3]
    assert [each.distance for each in both] == pytest.approx(
        [_expected(dense, cut, calibration) for cut in cuts], rel=1e-4
    )
    assert {each.held_out for each in both} == {True}
    ran.clear()
    (again,) = measure_divergence(dense, cuts[:1], groups, calibration, held_out=False)
    assert again.distance == both[0].distance and again.held_out is False
    assert [sum(each is model for each in ran) for model in (dense, *cuts)] == [0, 3, 0]


@pytest.mark.parametrize(("room", "kept"), [(0, 0), (1, 1), (1.99, 1), (2, 2), (9, 3)])
def test_outputs_are_kept_as_far_as_there_is_room(pair, room, kept, monkeypatch):
    dense, groups, cuts = pair
    calibration = _batches(dense)
    size = dense(**calibration[0]).logits.numel()
    monkeypatch.setattr(divergence, "_KEPT", room * size)
    ran = _runs(monkeypatch)
    first, second = (measure_divergence(dense, cuts[:1], groups, calibration) for _ in range(2))
    assert first == second and [*calibration.outputs] == [*range(kept)]
    assert sum(each is dense for each in ran) == 6 - kept


def test_models_are_compared_as_they_are_used_and_left_as_they_were(pair):
    dense, groups, cuts = pair
    calibration = _batches(dense)
    expected = _expected(dense, cuts[0], calibration)
    for model in (dense, cuts[0]):
        model.train()
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
    (got,) = measure_divergence(dense, cuts[:1], groups, calibration)
    assert got.distance == pytest.approx(expected, rel=1e-4)
    for model in (dense, cuts[0]):
        assert all(module.training for module in model.modules())
        model.eval()


@pytest.mark.parametrize(("batches", "shared"), [(1, False), (2, True), (3, True)])
def test_batches_are_shared_where_there_is_one_for_every_process(pair, batches, shared, monkeypatch):
    """Of two processes: this one is the second, and what the first one adds is as much again."""
    dense, groups, cuts = pair
    calibration, added = _batches(dense, batches), []

    def add_up(*sums):
        added.append(len(sums))
        for each in sums:
            each.mul_(2)

    monkeypatch.setattr(divergence, "process_count", lambda: 2)
    monkeypatch.setattr(divergence, "my_share", lambda count: range(1, count, 2))
    monkeypatch.setattr(divergence, "add_up", add_up)
    ran = _runs(monkeypatch)
    found = measure_divergence(dense, cuts, groups, calibration)
    assert len(added) == 2 * shared
    assert sum(each is dense for each in ran) == 1
    mine = calibrate(dense, [calibration[1 if shared else 0]])
    assert [each.distance for each in found] == pytest.approx([_expected(dense, cut, mine) for cut in cuts], rel=1e-4)
    assert all(each.samples == calibration.samples and 0 <= each.agreement <= 1 for each in found)
