"""What is tried, and in what order, with stand-ins for all that takes time."""

import dataclasses
import itertools
import math
from types import SimpleNamespace

import pytest
import torch
from tiny import random_masks, tiny_model

from optimum_optin import OptinConfig, find_groups
from optimum_optin.merging.schedule import TokenSchedule
from optimum_optin.search import trials
from optimum_optin.search.candidates import Choice
from optimum_optin.search.trials import Trials, choose

SCHEDULES = [None, TokenSchedule(1, {"layers.0": 1}), TokenSchedule(1, {"layers.0": 2})]
GONE = [[("a",), ("a", "d")], [("b",), ("b", "c")]]  # without a schedule, and with one
WIDEST = 48  # inputs of the tiny model's widest consumer
CONFIG = OptinConfig(output_weight=3.0)


def _choice(schedule=None, sublayers=("a",), output_weight=CONFIG.output_weight):
    """A choice that tells by its masks what it was made from."""
    tells = torch.tensor([SCHEDULES.index(schedule), len(sublayers), int(100 * output_weight)])
    return Choice({"layers.0.heads": tells}, output_weight, schedule, sublayers)


@pytest.fixture
def chosen(monkeypatch):
    """Run `choose`; return what it chose, what was compared (the last is best), and how many batches were refitted."""
    model = tiny_model()
    groups = find_groups(model)

    def run(config=CONFIG, *, found=1, batches=80, held_out=True, head=True, tokens=9):
        compared, refitted = [], []
        monkeypatch.setattr(trials, "schedules", lambda *_: SCHEDULES[:found])
        monkeypatch.setattr(trials, "sublayers_to_go", lambda *given: GONE[given[-1] is not None])
        monkeypatch.setattr(trials, "ranked", lambda *_, **options: _choice(**options))
        monkeypatch.setattr(trials, "has_head", lambda *_: head)

        def best(tried, choices):
            refitted.append(len(tried.starts))
            compared.append(choices)
            return choices[-1]

        monkeypatch.setattr(Trials, "best", best)
        samples = [{"input_ids": torch.zeros(2, tokens)}] if held_out else None
        scores = SimpleNamespace(tokens=tokens)
        made = choose(model, groups, scores, config, starts=[None] * batches, held_out=samples)
        assert len({*refitted}) <= 1
        return made, compared, refitted[0] if refitted else None

    return run


def _same(one, other):
    return dataclasses.replace(one, masks={}) == dataclasses.replace(other, masks={}) and all(
        torch.equal(mask, other.masks[key]) for key, mask in one.masks.items()
    )


def test_schedules_are_tried_first_then_sublayers_then_weights(chosen):
    made, compared, _ = chosen(dataclasses.replace(CONFIG, depth="auto"), found=3)
    expected = [
        [_choice(schedule) for schedule in SCHEDULES],
        [_choice(SCHEDULES[2], ("b",)), _choice(SCHEDULES[2], ("b", "c"))],
        [_choice(SCHEDULES[2], ("b", "c"), weight) for weight in (3.0, 3.0 * 0.1, 30.0)],
    ]
    assert [len(each) for each in compared] == [3, 2, 3]
    assert all(map(_same, itertools.chain(*compared), itertools.chain(*expected)))
    assert made is compared[-1][-1]


def test_without_a_choice_of_depth_there_are_two_comparisons(chosen):
    made, compared, _ = chosen()
    assert [len(each) for each in compared] == [1, 3]
    assert all(map(_same, compared[1], [_choice(output_weight=weight) for weight in (3.0, 3.0 * 0.1, 30.0)]))
    assert made is compared[1][-1]


@pytest.mark.parametrize(("field", "other"), [("search", "ranked"), ("held_out", False), ("head", False)])
def test_where_nothing_can_be_compared_the_first_is_taken(chosen, field, other):
    config = dataclasses.replace(CONFIG, search=other) if field == "search" else CONFIG
    made, compared, _ = chosen(config, found=3, **({} if field == "search" else {field: other}))
    assert _same(made, _choice()) and not compared


@pytest.mark.parametrize(
    ("batches", "found", "depth", "refitted"),
    [
        (80, 1, "none", 10),  # an eighth
        (71, 1, "none", 8),
        (7, 1, "none", 1),  # but one
        (0, 1, "none", 0),
        (80, 2, "none", math.ceil(8 * WIDEST / 18)),  # for schedules, eight tokens for each input
        (80, 1, "auto", math.ceil(8 * WIDEST / 18)),
        (800, 2, "auto", 100),
    ],
)
def test_trials_are_refitted_on_a_part_of_the_batches(chosen, batches, found, depth, refitted):
    config = dataclasses.replace(CONFIG, depth=depth)
    assert chosen(config, found=found, batches=batches)[2] == refitted
    assert (WIDEST * 8) % 18 and refitted != (WIDEST * 7 / 18, WIDEST * 9 / 18)


@pytest.fixture
def tried(monkeypatch):
    """Trial cuts of a tiny model, and what was asked of the refit and of the comparison."""
    model = tiny_model()
    groups, asked = find_groups(model), []

    def refit(dense, models, groups, starts, strength, *, masks, rounds):
        asked.append(("refit", dense, starts, strength, masks, rounds))

    def measure(dense, models, groups, held_out):
        asked.append(("measured", models, held_out))
        return [SimpleNamespace(distance=float(len(asked) + place)) for place, _ in enumerate(models)]

    monkeypatch.setattr(trials, "refit", refit)
    monkeypatch.setattr(trials, "measure_divergence", measure)
    return model, groups, asked


@pytest.mark.parametrize("starts", [[], ["start"]])
def test_each_cut_is_made_refitted_and_compared(tried, starts):
    model, groups, asked = tried
    choices = [Choice(random_masks(groups, share=0.2 * (seed + 1), seed=seed), 1.0) for seed in range(4)]
    assert Trials(model, groups, starts, "held out").best(choices) is choices[0]
    measured = [each for each in asked if each[0] == "measured"]
    assert [len(models) for _, models, _ in measured] == [3, 1], "no more than three models are in memory"
    assert all(held_out == "held out" for *_, held_out in measured)
    for choice, cut in zip(choices, itertools.chain(*(models for _, models, _ in measured)), strict=True):
        neurons = int(choice.masks["layers.0.neurons"].sum())
        assert len(cut.bert.encoder.layer[0].intermediate.dense.weight) == neurons
        assert cut.bert.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
    refits = [each for each in asked if each[0] == "refit"]
    assert len(refits) == 2 * len(starts)
    for number, (_, dense, given, strength, masks, rounds) in enumerate(refits):
        assert (dense, given, strength, rounds) == (model, starts, 1e-2, 1)
        assert masks == [choice.masks for choice in choices[3 * number :][:3]]


def test_cuts_are_the_same_where_masks_and_schedules_are(tried):
    model, groups, asked = tried
    one, other = random_masks(groups, seed=0), random_masks(groups, seed=0)
    other["layers.0.neurons"] = ~other["layers.0.neurons"]
    first, again = Choice(one, 1.0), Choice({**one}, 2.0)
    trials_of = Trials(model, groups, [], [])
    assert trials_of.best([again, first]) is again and not asked
    assert trials_of.best([first, Choice(other, 1.0)]) is first
    assert [len(models) for _, models, _ in asked] == [2]
