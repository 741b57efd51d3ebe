"""How often every road runs the model: the budget of docs/source/concepts/method.mdx, counted in calls of layers."""

import math
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from tiny import tiny_model, tiny_samples
from tsv import write_sst2
from words import TEXTS, word_tokenizer

from optimum_optin import OptinConfig, OptinPruner, Scores, find_groups
from optimum_optin.commands import run
from optimum_optin.discovery import find
from optimum_optin.discovery.find import find_layers

BATCHES = 16
HELD_OUT = BATCHES // 8
FIT = BATCHES - HELD_OUT
TRIAL = FIT // 8
SUBLAYERS = 2
REFIT = 1  # each batch goes once through each model, and pauses
COURSE = 1  # of two samples: where that is, and where outputs join the stream
CONFIG = OptinConfig(flops=0.5, batch_size=4, num_samples=4 * BATCHES, probes=2 * BATCHES)

SKIPS = {"swin": 2, "clip": 2}  # kinds of networks, each masked once, and cut once: what to skip without units
# Of one sample, twice; masked; with each role masked; two that wait for each other; and of the one kind of network.
PROOF = 2 + 4 + SUBLAYERS + 2 + 1
CUTS = 4 + 1  # of the copy that is cut beside the masked model
SCORE = BATCHES
CUT = 1 + 1  # does it have a head; its MACs
COMPENSATE = COURSE + FIT
CHOOSE = COURSE + TRIAL + HELD_OUT  # the outputs of what is held out are kept, and compared with the result's, too
PRUNE = CUT + COMPENSATE + CHOOSE
PRUNED = HELD_OUT + 1 + REFIT * FIT + 3 * (REFIT * TRIAL + HELD_OUT)
BEFORE = {"vit": 1, "swin": 1, "clip": 1}  # passes of one image in order to check the data
MORE = {name: SKIPS.get(name, 1) - 1 for name in ("bert", "vit", "swin", "clip")}


@contextmanager
def counted(model):
    """Passes of the dense model, and of all other models together: calls of layers by the number of layers.

    A copy on the meta device, whose units are counted, multiplies nothing: no pass of a model.
    """
    calls = Counter()
    layers = [model.get_submodule(path) for path in find_layers(model).values()]
    kinds, dense = {type(layer) for layer in layers}, {id(layer) for layer in layers}
    call = torch.nn.Module.__call__

    def counting(module, *args, **kwargs):
        if type(module) in kinds and not next(module.parameters()).is_meta:
            calls["dense" if id(module) in dense else "pruned"] += 1 / len(layers)
        return call(module, *args, **kwargs)

    torch.nn.Module.__call__ = counting
    try:
        yield calls
    finally:
        torch.nn.Module.__call__ = call


def _passes(calls, which):
    """Whole passes: what only looks at the first layer, to count tokens or for trial runs, is less than one."""
    return math.floor(calls[which] + 1e-6)


@pytest.fixture(params=["bert", "vit", "swin", "clip"])
def road(request):
    model = tiny_model(request.param)
    pruner = OptinPruner(model, config=CONFIG)
    return request.param, pruner, tiny_samples(4 * BATCHES, model=model)


def test_scoring_takes_a_pass_of_every_batch_and_planning_none(road):
    name, pruner, data = road
    with counted(pruner.model) as calls:
        scores = pruner.score(data)
    assert _passes(calls, "dense") == PROOF + MORE[name] + SCORE + BEFORE.get(name, 0)
    assert _passes(calls, "pruned") == CUTS + MORE[name]
    with counted(pruner.model) as calls:
        pruner.plan(scores)
        pruner.plan(scores, flops=0.7)
    assert not _passes(calls, "dense")
    assert not calls["pruned"]


@pytest.mark.parametrize("given", ["data", "scores", "data and scores", "data and scores from disk"])
def test_pruning_runs_the_dense_model_once_for_scores_and_once_to_refit(given, road, tmp_path):
    name, pruner, data = road
    scores = pruner.score(data) if "scores" in given else None
    dense = PRUNE
    if given == "data":
        dense += PROOF + MORE[name] + SCORE + BEFORE.get(name, 0)
    elif given == "data and scores":  # the same data: what scoring saw of them serves
        dense += BEFORE.get(name, 0)
    elif given == "data and scores from disk":
        scores.save_pretrained(tmp_path)
        scores = Scores.from_pretrained(tmp_path)
        dense += FIT + BEFORE.get(name, 0)
    with counted(pruner.model) as calls:
        pruner.prune(data if "data" in given else None, scores=scores)
    assert _passes(calls, "dense") == dense
    assert _passes(calls, "pruned") <= PRUNED + 1 + (CUTS if given == "data" else 0)


def test_other_data_than_the_scores_are_seen_once_more():
    pruner = OptinPruner(tiny_model(), config=CONFIG)
    scores = pruner.score(tiny_samples(4 * BATCHES))
    with counted(pruner.model) as calls:
        pruner.prune(tiny_samples(4 * BATCHES, seed=1), scores=scores)
    assert _passes(calls, "dense") == PRUNE + FIT


@pytest.mark.parametrize(
    ("changes", "dense", "pruned"),
    [
        ({"search": "ranked"}, HELD_OUT + 1 + COMPENSATE, HELD_OUT + 1 + REFIT * FIT),
        ({"compensation": "none"}, CUT + HELD_OUT, HELD_OUT + 1 + 3 * HELD_OUT),
        ({"search": "ranked", "compensation": "none"}, HELD_OUT + 1, HELD_OUT + 1),
    ],
    ids=["ranked", "no refit", "neither"],
)
def test_what_is_left_out_is_not_run(changes, dense, pruned):
    pruner = OptinPruner(tiny_model(), config=CONFIG)
    scores = pruner.score(tiny_samples(4 * BATCHES))
    with counted(pruner.model) as calls:
        pruner.prune(scores=scores, config=replace(CONFIG, **changes))
    assert _passes(calls, "dense") == dense
    assert _passes(calls, "pruned") <= pruned


def test_the_exact_scorer_runs_a_part_of_the_model_for_every_unit():
    model = tiny_model()
    units = sum(group.units for group in find_groups(model))
    with counted(model) as calls:
        OptinPruner(model).score(tiny_samples(8), OptinConfig(scorer="exact"))
    assert _passes(calls, "dense") == PROOF + 1 + units  # replayed layers are called, too, but do not run


def test_gauss_newton_takes_a_pass_for_every_probe():
    model = tiny_model()
    with counted(model) as calls:
        OptinPruner(model).score(tiny_samples(64), OptinConfig(scorer="gauss_newton", probes=12))
    assert _passes(calls, "dense") == PROOF + 12


def test_what_was_proved_is_not_proved_again():
    pruner = OptinPruner(tiny_model(), config=CONFIG)
    with counted(pruner.model) as calls:
        pruner.check()
        pruner.check()
        OptinPruner(pruner.model).check()
    assert (_passes(calls, "dense"), _passes(calls, "pruned")) == (PROOF, CUTS)


def test_groups_and_layers_are_found_once_and_handed_down(road, monkeypatch):
    name, pruner, data = road
    found = Counter()
    for each in (find.find_groups, find.find_layers):

        def finding(model, *arguments, each=each):
            found[each.__name__, "dense" if model is pruner.model else "pruned"] += 1
            return each(model, *arguments)

        for module in list(sys.modules.values()):
            if module and module.__name__.startswith("optimum_optin") and vars(module).get(each.__name__) is each:
                monkeypatch.setattr(module, each.__name__, finding)
    pruner.prune(data)
    # The model that is scored is told by all of its groups, more of which may have been found than are to be pruned.
    # Of a model of images, they are found once more, to count its tokens.
    assert (found["find_groups", "dense"], found["find_groups", "pruned"]) == (2 if name == "bert" else 3, 0)
    assert found["find_layers", "dense"] <= 2 and found["find_layers", "pruned"] <= 1


def test_evaluating_runs_both_models_once_over_the_samples(tmp_path):
    pruner = OptinPruner(tiny_model(num_labels=2), word_tokenizer(), CONFIG)
    pruner.prune(TEXTS)
    write_sst2(tmp_path, 24)
    with counted(pruner.model) as calls:
        pruner.evaluate("sst2", data_dir=tmp_path, batch_size=4)
    assert (_passes(calls, "dense"), _passes(calls, "pruned")) == (6, 6)
    with counted(pruner.model) as calls:
        pruner.benchmark(repeats=3)
    assert _passes(calls, "dense") == _passes(calls, "pruned") == 5  # and two to warm up


def test_the_command_line_runs_the_model_as_often(tmp_path):
    model = tiny_model(num_labels=2)
    model.save_pretrained(tmp_path / "dense")
    word_tokenizer().save_pretrained(tmp_path / "dense")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS * 3), encoding="utf-8")
    options = [str(tmp_path / "dense"), "--calibration", str(tmp_path / "texts.txt"), "--batch-size", "4"]
    options += ["--num-samples", str(4 * BATCHES), "--probes", str(2 * BATCHES)]
    scores = ["--scores", str(tmp_path / "scores")]
    budgets = {  # the counter takes the loaded dense model for another one
        ("score", *options, "--output", str(tmp_path / "scores")): PROOF + CUTS + SCORE,
        ("plan", str(tmp_path / "dense"), *scores, "--flops", "0.7", "0.5"): 0,
        ("prune", *options, *scores, "--output", str(tmp_path / "pruned")): PROOF + CUTS + FIT + PRUNE + PRUNED,
        ("prune", *options, "--output", str(tmp_path / "pruned")): PROOF + CUTS + SCORE + PRUNE + PRUNED,
    }
    for (command, *arguments), budget in budgets.items():
        with counted(model) as calls:
            assert run(command, arguments) == 0
        assert _passes(calls, "pruned") <= budget, command
