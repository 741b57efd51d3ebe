"""What surrounds the regressions of a refit: what it is given, what has something to refit, what is left of outputs."""

import copy
import importlib
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from tiny import random_masks, tiny_batch, tiny_model
from torch import nn
from toys import Pictures, perturbed, pixels

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.architectures.group import Consumer, Cut, Group, Groups
from optimum_optin.compensation.refit import check_tokens, compensate, has_stop, kept_outputs, refit
from optimum_optin.editing.surgery import rewrite
from optimum_optin.passes.calibration import calibrate, dense_passes
from optimum_optin.running.batch import samples_in

module = importlib.import_module("optimum_optin.compensation.refit")  # its room has a function of this name


class Stopped(Exception):
    """Ends a refit where a test has seen enough."""


@pytest.fixture
def pictures():
    """Convolutions in a row, their groups, and a cut copy with its masks."""
    model = OptinPruner.from_model(perturbed(Pictures()), pixels()).model
    groups = find_groups(model)
    masks = random_masks(groups)
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    return model, groups, masks, cut


def _starts(model, groups, count):
    batches = [tiny_batch(model, seed=seed) for seed in range(count)]
    return dense_passes(model, groups, calibrate(model, batches), OptinConfig(probes=2))


def test_one_model_is_refitted_with_its_masks(monkeypatch):
    given = []
    monkeypatch.setattr(module, "dense_passes", lambda *each: each)
    monkeypatch.setattr(module, "refit", lambda *each, masks: given.append((each, masks)))
    compensate("dense", "pruned", "groups", "data")
    compensate("dense", "pruned", "groups", "data", "config", masks="masks")
    starts = ("dense", "groups", "data")
    assert given == [
        (("dense", ["pruned"], "groups", (*starts, OptinConfig())), None),
        (("dense", ["pruned"], "groups", (*starts, "config")), ["masks"]),
    ]


@pytest.mark.parametrize("strength", [None, 0.1])
@pytest.mark.parametrize("count", [1, 2])
def test_parts_of_a_single_batch_are_not_shared_out_where_its_rows_choose_strengths(count, strength, monkeypatch):
    model = tiny_model()
    groups, seen = find_groups(model), []
    starts = _starts(model, groups, count)
    pruned = copy.deepcopy(model)
    for each in (model, pruned):
        each.train()

    def shared_out(given, *, by_samples):
        seen.append((given, by_samples, model.training, pruned.training))
        raise Stopped

    monkeypatch.setattr(module, "shared_out", shared_out)
    with pytest.raises(Stopped):
        refit(model, [pruned], groups, starts, strength)
    assert seen == [(starts, count == 2 or strength is not None, False, False)]
    assert model.training and pruned.training


def test_the_course_is_found_with_two_samples(monkeypatch):
    model, seen = tiny_model(), []
    groups = find_groups(model)
    starts = _starts(model, groups, 1)

    def find_course(dense, members, sample):
        seen.append(sample)
        raise Stopped

    monkeypatch.setattr(module, "find_course", find_course)
    with pytest.raises(Stopped):
        refit(model, [copy.deepcopy(model)], groups, [None, *starts])
    assert samples_in(seen[0]) == 2
    assert all(torch.equal(value, starts[0].batch[name][:2]) for name, value in seen[0].items())


@pytest.mark.parametrize(("options", "rounds"), [({}, 3), ({"rounds": 1}, 1), ({"rounds": 4}, 4)])
def test_what_a_relu_reads_is_refitted_in_rounds_and_all_else_once(pictures, options, rounds, monkeypatch):
    model, groups, masks, cut = pictures
    done = []

    def refit_at(pruned, stop, walks, strength, *, join, earlier=None):
        earlier_ones = {path for path, _ in done} - {stop.path}
        for walk in walks:
            assert not earlier_ones & {*walk.dense.targets, *walk.dense.sources}, "memory holds what is still needed"
        done.append((stop.path, earlier))
        return stop.path

    monkeypatch.setattr(module, "refit_at", refit_at)
    starts = dense_passes(model, groups, calibrate(model, [pixels()]), OptinConfig(probes=2))
    refit(model, [cut], groups, starts, masks=[masks], **options)
    times = Counter(path for path, _ in done)
    assert {*times.values()} == {1, rounds}
    for path, count in times.items():
        assert [earlier for each, earlier in done if each == path] == [None] + [path] * (count - 1)


def test_a_stop_is_there_while_all_its_producers_have_units():
    model = nn.ModuleDict({"whole": nn.Linear(3, 2), "empty": nn.Linear(3, 2)})
    model["empty"].weight = nn.Parameter(torch.zeros(0, 3))
    for producers, there in (
        (("whole",), True),
        (("whole", "whole"), True),
        (("whole", "empty"), False),
        (("empty",), False),
        (("whole", "gone"), False),
        ((), True),
    ):
        assert has_stop(model, SimpleNamespace(producers=producers)) == there, producers


@pytest.mark.parametrize(("role", "inputs"), [("neurons", 24), ("heads", 24), ("expert_neurons", 8)])
def test_few_tokens_are_told_by_the_inputs_of_the_widest_consumer(role, inputs, caplog):
    """Six units of four columns; of experts, each of the three has its own."""
    members = [
        Group("layers.0", "neurons", 5, 1, Cut((Consumer("a"),), ())),
        Group("layers.0", role, 6, 4, Cut((Consumer("b"),), ()), parts=3),
        Group("decoder.0", "neurons", 99, 1, Cut((Consumer("c"),), ())),
    ]
    groups = Groups(tuple(members), {}, {"layers": "input_ids", "empty": "pixels", "decoder": "decoder_input_ids"})
    for tokens in (inputs - 1, inputs):
        caplog.clear()
        masks = [torch.arange(64) < tokens - 5, torch.arange(9) < 5]
        whole = torch.ones(60, dtype=torch.bool)
        real = [{"layers": each, "empty": each[:0], "decoder": whole} for each in masks]
        check_tokens(groups, SimpleNamespace(real=real))
        told = f"calibration data have {tokens} tokens, fewer than the {inputs} inputs of a linear" in caplog.text
        assert told == (tokens < inputs) and len(caplog.records) == told


def test_outputs_that_are_left_are_those_of_the_units_that_are(pictures):
    """Every row of a weight tells its number."""
    model, groups, masks, cut = pictures
    for each in model.modules():
        if isinstance(each, nn.Conv2d):
            each.weight.data[:] = torch.arange(float(len(each.weight)))[:, None, None, None]
    cut = copy.deepcopy(model)
    rewrite(cut, groups, masks)
    found = kept_outputs(model, groups, masks)
    assert len(found) == 1
    for path, rows in found.items():
        assert rows.tolist() == cut.get_submodule(path).weight[:, 0, 0, 0].tolist()
        assert 0 < len(rows) < len(model.get_submodule(path).weight)
    assert kept_outputs(model, groups, {}) == {}


def test_masks_are_asked_for_where_a_consumer_has_lost_outputs(pictures):
    model, groups, masks, cut = pictures
    (path,) = kept_outputs(model, groups, masks)
    for pruned in ([cut], [copy.deepcopy(model), cut]):
        with pytest.raises(ValueError, match=f"{path} writes units that were cut: give the masks"):
            refit(model, pruned, groups, [])
    module._check_outputs(model, [copy.deepcopy(model)], groups)


def test_a_join_is_of_the_outputs_that_are_left():
    join = SimpleNamespace(of=lambda kept: ("of", kept))
    course = SimpleNamespace(joins={"a": join, "b": join})
    kept = {"a": [1, 2], "c": [3]}
    for path, expected in (("a", ("of", [1, 2])), ("b", join), ("c", None), ("d", None)):
        assert module._join(course, SimpleNamespace(path=path), kept) == expected
