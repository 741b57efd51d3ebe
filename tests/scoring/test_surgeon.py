"""The surgeon on whole models: its sums against direct ones, its predictions against what a refit leaves."""

import copy

import pytest
import torch
from decoders import generator
from tiny import tiny_model, tiny_samples
from torch import nn

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.architectures.group import Consumer, Cut, Group, Groups, consumers_by_path
from optimum_optin.compensation.refit import compensate
from optimum_optin.editing.masking import gradients
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate
from optimum_optin.passes.hooks import observed
from optimum_optin.passes.starts import run_dense
from optimum_optin.scoring import surgeon
from optimum_optin.scoring.parts import parts_of
from optimum_optin.search.divergence import measure_divergence


def test_a_unit_that_another_can_replace_costs_little():
    model = tiny_model()
    with torch.no_grad():
        dense = model.bert.encoder.layer[0].intermediate.dense
        dense.weight[1] = dense.weight[0]
        dense.bias[1] = dense.bias[0]
    scores = OptinPruner(model).score(tiny_samples(100), OptinConfig(scorer="surgeon", probes=16))
    neurons = scores.terms["trajectory"]["layers.0.neurons"]
    assert min(neurons[0], neurons[1]) < 0.2 * neurons.median()


def test_the_surgeon_serves_the_whole_road():
    pruner = OptinPruner(tiny_model("modernbert"))
    pruner.prune(tiny_samples(100), OptinConfig(flops=0.5, scorer="surgeon", probes=16))
    assert 0.4 < pruner.report.flops_achieved <= 0.5
    scores = pruner.score(tiny_samples(100), OptinConfig(scorer="surgeon", probes=16))
    for group in find_groups(pruner.model):
        values = scores.terms["trajectory"][group.key]
        assert (values > 0).all()
        assert len(set(values.tolist())) == group.units, "the order of removal must survive ranking"


def test_covariances_are_of_real_tokens_and_metrics_share_one_scale(monkeypatch):
    """H against a direct computation; each term's metrics have a trace of one, undone in the scores. Half of the probes
    are of the trajectory, too.
    """
    asked, slopes, half = [], [], (0, 2, 4)  # of 3 batches, two times: the first and third, then the second

    def ones(readers, units, shares):
        (reader,) = readers
        assert shares == [1.0, 1.0], "both terms weigh the same"
        asked.append((reader.covariance(), reader.metrics))
        return [torch.ones(units).double() for _ in reader.metrics]

    def spied(*args, **options):
        slopes.append((options["keep_graph"], gradients(*args, **options)))
        return slopes[-1][1]

    monkeypatch.setattr("optimum_optin.scoring.surgeon.removal_scores", ones)
    monkeypatch.setattr("optimum_optin.scoring.surgeon.gradients", spied)
    model = tiny_model()
    scores = OptinPruner(model).score(tiny_samples(24), OptinConfig(scorer="surgeon", probes=12))
    groups = find_groups(model)
    for group, (covariance, _) in zip(groups, asked, strict=True):
        inputs = []
        for batch in [*scores.calibration, *scores.calibration]:  # 6 probes on 3 batches
            with torch.no_grad(), observed(model, [group.consumer]) as seen:
                model(**batch)
            inputs.append(seen[group.consumer].input[batch["attention_mask"].bool()])
        inputs = torch.cat(inputs).double()
        floor = 1e-5 * inputs.square().mean() * torch.eye(inputs.shape[1])
        torch.testing.assert_close(covariance, inputs.T.cov(correction=0) + floor, atol=1e-6, rtol=1e-4)
    for number in range(2):
        assert sum(float(metrics[number].trace()) for _, metrics in asked) == pytest.approx(1)
    scales = {name: {float(score[0]) for score in by_group.values()} for name, by_group in scores.terms.items()}
    assert all(len(values) == 1 for values in scales.values())
    assert scales["trajectory"] != scales["output"]
    masks = [batch["attention_mask"].bool() for batch in scores.calibration]
    seen = [
        (probe, name) for probe in range(6) for name in ("output", "trajectory") if name == "output" or probe in half
    ]
    for name, count in (("output", 6), ("trajectory", 3)):  # the mean of all squares over its probes
        squares = [
            float(slope[masks[probe % 3]].square().sum())
            for (probe, term), (_, found) in zip(seen, slopes, strict=True)
            for slope in found
            if term == name
        ]
        assert scales[name].pop() == pytest.approx(sum(squares) / count)
    last = [(probe, "trajectory" if probe in half else "output") for probe in range(6)]
    assert [kept for kept, _ in slopes] == [each not in last for each in seen], "a graph goes with its last gradients"


@pytest.mark.parametrize("batches", [1, 2, 3, 6, 12, 24, 64, 100])
def test_half_of_the_probes_of_each_batch_are_of_the_trajectory(batches):
    probes = range(max(64, batches))
    seen = torch.zeros(batches, 2)
    for probe in probes:
        seen[probe % batches, int(surgeon._probes_trajectory(probe, batches))] += 1
    assert (seen.diff(dim=1).abs() <= 1).all() and seen.sum(0).diff().abs() <= 2
    assert surgeon._probes_trajectory(0, batches), "none but the first may run"


@pytest.mark.parametrize("model_type", ["swin with padded windows", "swinv2 with padded windows"])
def test_what_fills_up_windows_does_not_count(model_type, monkeypatch):
    """H of an attention in windows, against its inputs put back into the order of the image and cropped to it."""
    asked = []

    def ones(readers, units, shares):
        asked.append(readers[0].covariance())
        return [torch.ones(units).double() for _ in readers[0].metrics]

    monkeypatch.setattr("optimum_optin.scoring.surgeon.removal_scores", ones)
    model = tiny_model(model_type)
    scores = OptinPruner(model).score(tiny_samples(24, model=model), OptinConfig(scorer="surgeon", probes=6))
    (attention,) = (group for group in find_groups(model) if group.key == "layers.0.heads")
    rows = []
    for batch in scores.calibration:
        with torch.no_grad(), observed(model, [attention.consumer]) as seen:
            model(**batch)
        windows = seen[attention.consumer].input  # (8 * 9, 9, channels), of grids of 8 x 8 filled up to 9 x 9
        for image in windows.view(8, 3, 3, 3, 3, -1):
            rows += [image[y // 3, x // 3, y % 3, x % 3] for y in range(8) for x in range(8)]
    rows = torch.stack(rows).double()
    floor = 1e-5 * rows.square().mean() * torch.eye(rows.shape[1])
    torch.testing.assert_close(asked[0], rows.T.cov(correction=0) + floor, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_predicted_divergence_is_about_what_a_refit_leaves():
    model = tiny_model()
    samples = tiny_samples(200)
    pruner = OptinPruner(model)
    config = OptinConfig(scorer="surgeon", probes=400, search="ranked", min_heads=0)
    scores = pruner.score(samples, config)
    groups = find_groups(model)
    masks = {group.key: torch.ones(group.units, dtype=torch.bool) for group in groups}
    masks["layers.2.neurons"] = scores.terms["output"]["layers.2.neurons"].argsort(descending=True).argsort() < 24
    pruned = copy.deepcopy(model)
    rewrite(pruned, groups, masks)
    compensate(model, pruned, groups, scores.calibration)
    fresh = calibrate(model, calibration_batches(tiny_samples(200, seed=5), model))
    (measured,) = measure_divergence(model, [pruned], groups, fresh)
    assert 1 / 3 < scores.removed(masks)["output"] / measured.distance < 3


class Chain(nn.Module):
    """Convolutions without norms, with an activation between them."""

    def __init__(self, in_place):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 5, 3, padding=1)
        self.act, self.head = nn.ReLU(inplace=in_place), nn.Linear(5, 4)

    def forward(self, pixels):
        return self.head(self.act(self.second(self.act(self.first(pixels)))).mean((2, 3)))


def test_activations_that_work_in_place_change_no_score():
    torch.manual_seed(0)
    weights, found = Chain(False).state_dict(), []
    data = [{"pixels": torch.randn(3, 8, 8)} for _ in range(8)]
    for in_place in (False, True):
        model = Chain(in_place).eval()
        model.load_state_dict(weights)
        pruner = OptinPruner.from_model(model, {"pixels": torch.stack([each["pixels"] for each in data[:2]])})
        found.append(pruner.score(data, OptinConfig(num_samples=8, batch_size=4, probes=4)).combine(1.0))
    assert found[0].keys() == found[1].keys()
    for key, scores in found[0].items():
        torch.testing.assert_close(found[1][key], scores)


@pytest.mark.parametrize("most", [1, 40_000])
def test_scores_in_parts_are_those_of_one_pass(most, monkeypatch):
    """As many passes over the data as memory asks for; the same draws, orders and starts of the refit."""
    model, samples = tiny_model(), tiny_samples(40)
    config = OptinConfig(scorer="surgeon", probes=16)
    whole = OptinPruner(model).score(samples, config)
    ran = []
    monkeypatch.setattr("optimum_optin.scoring.surgeon.room_for", lambda model: most)
    monkeypatch.setattr(
        "optimum_optin.scoring.surgeon.run_dense",
        lambda model, groups, *args, **kwargs: ran.append(len(groups)) or run_dense(model, groups, *args, **kwargs),
    )
    parted = OptinPruner(model).score(samples, config)
    assert len(set(ran)) > 1, "it must have taken more than one pass"
    for name, by_group in whole.terms.items():
        for key, score in by_group.items():
            torch.testing.assert_close(parted.terms[name][key], score, rtol=1e-5, atol=0)
    for one, other in zip(whole.calibration.starts, parted.calibration.starts, strict=True):
        assert one.seed == other.seed
        for path, weights in one.weights.items():
            assert torch.equal(weights, other.weights[path])


@pytest.mark.parametrize("most", [1, 1e9])
def test_loops_share_the_time_and_what_they_gather_can_be_restored(most, monkeypatch):
    model, told, left = tiny_model(), [], []

    def looked_at(items, title, unit, *, name, sums, share):
        told.append((title, share))
        yield from items
        if name == "probes":
            saved = sums.tensors()
            paths = {key.rpartition("/inputs/")[0] for key in saved if "/inputs/" in key}
            assert paths == {f"sums/{path}" for path in sums.sums}
            assert sum("/metrics/" in key for key in saved) == 2 * len(paths)
            again = surgeon._Gathered(model, find_groups(model), sums.calibration, counted=sums.counted)
            again.sums = {path: surgeon._sums_at(model, *pairs[path]) for path in sums.sums}
            again.restore(saved)
            restored = again.tensors()
            assert restored.keys() == saved.keys()
            assert all(torch.equal(restored[key], value) for key, value in saved.items())
            assert again.traces.keys() == (sums.traces.keys() if sums.counted else set())
            left.append(sum(key.startswith("starts/") for key in saved))

    monkeypatch.setattr("optimum_optin.scoring.surgeon.resumed", looked_at)
    monkeypatch.setattr("optimum_optin.scoring.surgeon.room_for", lambda model: most)
    pairs = consumers_by_path(find_groups(model))
    OptinPruner(model).score(tiny_samples(16), OptinConfig(scorer="surgeon", probes=8))
    assert sum(share for _, share in told) == pytest.approx(1)
    probing = [title for title, _ in told if title != "removal orders"]
    parts = len(probing)
    assert (parts == 1) == (most > 1)
    assert probing == (
        [f"surgeon scores, part {n} of {parts}" for n in range(1, parts + 1)] if parts > 1 else ["surgeon scores"]
    )
    assert left[0] > 0 and not any(left[1:]), "the first pass alone leaves starts"


@pytest.mark.parametrize("kind", ["bert", "convolutions"])
def test_sums_take_as_many_bytes_as_parts_are_made_by(kind, monkeypatch):
    taken = {}

    def looked_at(items, *texts, name, sums, share):
        yield from items
        if name == "probes":
            for path, each in sums.sums.items():
                few = ("inputs/count", "inputs/weight", "inputs/shift", "inputs/total")
                taken[path] = sum(tensor.nbytes for key, tensor in each.tensors().items() if key not in few)

    monkeypatch.setattr("optimum_optin.scoring.surgeon.resumed", looked_at)
    config = OptinConfig(scorer="surgeon", probes=2, num_samples=4, batch_size=4)
    if kind == "bert":
        pruner, data = OptinPruner(tiny_model()), tiny_samples(4)
    else:
        data = [{"pixels": torch.randn(3, 8, 8)} for _ in range(4)]
        example = {"pixels": torch.stack([each["pixels"] for each in data[:2]])}
        pruner = OptinPruner.from_model(Chain(False).eval(), example)
    pruner.score(data, config)
    pairs = consumers_by_path(find_groups(pruner.model))
    assert taken == {path: surgeon._size(pruner.model, *pair) for path, pair in pairs.items()}


def test_starts_are_of_the_first_pass_over_the_data():
    """Further probes see the same minibatches, and leave none."""
    model = tiny_model()
    once, thrice = (
        OptinPruner(model).score(tiny_samples(16), OptinConfig(scorer="surgeon", batch_size=8, probes=probes))
        for probes in (2, 12)
    )
    assert len(once.calibration.starts) == 2
    for one, other in zip(once.calibration.starts, thrice.calibration.starts, strict=True):
        assert one.seed == other.seed
        assert all(torch.equal(other.weights[path], weights) for path, weights in one.weights.items())


def test_groups_that_share_a_consumer_are_scored_together():
    def group(layer, *consumers):
        return Group(layer, "channels", 4, 1, Cut(tuple(Consumer(path, 1) for path in consumers), ()))

    members = (group("layers.0", "a", "b"), group("layers.1", "c"), group("layers.2", "b", "d"), group("layers.3", "e"))
    groups = Groups(members, {}, {})
    sizes = dict.fromkeys("abcde", 10)
    assert [[each.layer[-1] for each in part] for part in parts_of(groups, sizes, 1)] == [["0", "2"], ["1"], ["3"]]
    assert [[each.layer[-1] for each in part] for part in parts_of(groups, sizes, 40)] == [["0", "1", "2"], ["3"]]
    assert [len(part) for part in parts_of(groups, sizes, 50)] == [4]


def test_a_language_model_is_ordered_by_its_output_and_all_its_tokens_weigh_the_same(monkeypatch):
    given = []

    def ones(readers, units, shares):
        given.append(shares)
        return [torch.ones(units).double() for _ in shares]

    monkeypatch.setattr("optimum_optin.scoring.surgeon.removal_scores", ones)
    model = generator("llama")
    draws = torch.Generator().manual_seed(0)
    samples = [{"input_ids": torch.randint(1, 32, (9,), generator=draws).tolist()} for _ in range(12)]
    scores = OptinPruner(model).score(samples, OptinConfig(num_samples=12, block_size=9))
    assert {tuple(shares) for shares in given} == {(1.0, 0.0)}
    for start in scores.calibration.starts:
        assert all((weights == 1).all() for weights in start.weights.values())
