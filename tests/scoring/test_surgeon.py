"""The surgeon's removal costs against brute-force refits."""

import copy
import itertools

import pytest
import torch
from decoders import generator
from tiny import tiny_model, tiny_samples
from torch import nn

from optimum_optin import OptinConfig, OptinPruner, find_groups
from optimum_optin.architectures.group import Consumer, Cut, Group, Groups
from optimum_optin.compensation.refit import compensate
from optimum_optin.editing.surgery import rewrite
from optimum_optin.inputs.batching import calibration_batches
from optimum_optin.passes.calibration import calibrate
from optimum_optin.passes.hooks import observed
from optimum_optin.passes.starts import run_dense
from optimum_optin.scoring.parts import parts_of
from optimum_optin.scoring.removal import _DAMPING, Reader, _pool, removal_scores
from optimum_optin.search.divergence import measure_divergence


def _problem(units, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    size = units * width
    weight = torch.randn(3, size, generator=generator, dtype=torch.float64)
    x = torch.randn(50, size, generator=generator, dtype=torch.float64) @ torch.randn(
        size, size, generator=generator, dtype=torch.float64
    )
    g = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    return weight, x.T @ x / 50, g.T @ g


def _refit_cost(weight, covariance, metric, removed):
    """min over W' without the removed columns of tr(Gamma (W - W') H (W - W')^T), by solving for W'."""
    damped = covariance + _DAMPING * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    kept = [column for column in range(weight.shape[1]) if column not in removed]
    refitted = torch.zeros_like(weight)
    if kept:
        refitted[:, kept] = torch.linalg.solve(damped[kept][:, kept], damped[kept] @ weight.T).T
    change = weight - refitted
    return float(torch.trace(metric @ change @ damped @ change.T))


@pytest.mark.parametrize(("units", "width"), [(5, 1), (4, 2), (3, 3)], ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_greedy_order_and_costs_equal_brute_force(units, width, seed):
    weight, covariance, metric = _problem(units, width, seed)
    removed, total, increments, order = set(), 0.0, [], []
    while len(order) < units:
        costs = {}
        for unit in set(range(units)) - set(order):
            columns = removed | set(range(unit * width, (unit + 1) * width))
            costs[unit] = _refit_cost(weight, covariance, metric, columns)
        best = min(costs, key=costs.get)
        order.append(best)
        removed |= set(range(best * width, (best + 1) * width))
        increments.append(costs[best] - total)
        total = costs[best]
    (scores,) = removal_scores([Reader(weight, covariance, [metric])], weight.shape[1] // width)
    assert scores.argsort().tolist() == order
    expected = _pool(torch.tensor(increments, dtype=torch.float64))
    torch.testing.assert_close(scores[order], expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_inputs_beside_the_units_take_over_as_well(width):
    """As where a concatenation is read: the others stay, and count in each refit."""
    weight, covariance, metric = _problem(6, width)
    columns = slice(2 * width, 5 * width)
    costs = [_refit_cost(weight, covariance, metric, {*range(unit * width, (unit + 1) * width)}) for unit in (2, 3, 4)]
    every = _refit_cost(weight, covariance, metric, {*range(columns.start, columns.stop)})
    (scores,) = removal_scores([Reader(weight, covariance, [metric], columns)], 3)
    assert float(scores.min()) == pytest.approx(min(costs), rel=1e-6)
    assert int(scores.argmin()) == costs.index(min(costs))
    assert float(scores.sum()) == pytest.approx(every, rel=1e-6)


def test_where_inputs_are_too_many_units_cost_what_they_add_alone():
    weight, covariance, metric = _problem(6, 2)
    columns = slice(2, 10)  # two channels for each of two units, in blocks of two
    blocks = torch.stack([covariance[at : at + 2, at : at + 2] for at in range(0, 12, 2)])
    (scores,) = removal_scores([Reader(weight, blocks, [metric], columns)], 2)
    for unit, channels in enumerate([(1, 2), (3, 4)]):
        expected = 0
        for channel in channels:
            part, inside = weight[:, 2 * channel : 2 * channel + 2], blocks[channel]
            expected += float(torch.trace(metric @ part @ inside @ part.T))
        assert float(scores[unit]) == pytest.approx(expected, rel=1e-6)


def test_several_metrics_share_the_order_of_their_sum():
    weight, covariance, metric = _problem(6, 1)
    _, _, other = _problem(6, 1, seed=7)
    (together,) = removal_scores([Reader(weight, covariance, [metric + other])], weight.shape[1])
    one, two = removal_scores([Reader(weight, covariance, [metric, other])], weight.shape[1])
    order = together.argsort()
    assert one.argsort().tolist() == two.argsort().tolist() == order.tolist()
    assert float((one + two).sum()) == pytest.approx(float(together.sum()))


@pytest.mark.parametrize("pairs", [8, 256])
def test_of_twins_one_stays(pairs):
    """With many units a step removes several; it must not remove both of two that can replace each other."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 * pairs, pairs, generator=generator, dtype=torch.float64).repeat(1, 2)
    x = x + 1e-3 * torch.randn(x.shape, generator=generator, dtype=torch.float64)
    weight = torch.randn(16, 2 * pairs, generator=generator, dtype=torch.float64)
    (scores,) = removal_scores(
        [Reader(weight, x.T @ x / len(x), [torch.eye(16, dtype=torch.float64)])], weight.shape[1]
    )
    kept = scores.argsort(descending=True)[:pairs] % pairs
    assert len(set(kept.tolist())) == pairs


def test_pooling_is_isotonic_regression():
    values = torch.tensor([1.0, 3.0, 2.0, 2.0, 5.0, 4.0], dtype=torch.float64)
    pooled = _pool(values)
    assert (pooled.diff() >= 0).all()
    assert float(pooled.sum()) == pytest.approx(float(values.sum()))
    # No other non-decreasing sequence of these averages is nearer.
    grid = sorted({float(values[i:j].mean()) for i, j in itertools.combinations(range(7), 2)})
    nearest = min(
        float((values - torch.tensor(each, dtype=torch.float64)).square().sum())
        for each in itertools.combinations_with_replacement(grid, 6)
    )
    assert float((values - pooled).square().sum()) == pytest.approx(nearest)


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
    """H against a direct computation; each term's metrics have a trace of one, undone in the scores."""
    asked = []

    def ones(readers, units, shares):
        (reader,) = readers
        asked.append((reader.covariance, reader.metrics))
        return [torch.ones(units).double() for _ in reader.metrics]

    monkeypatch.setattr("optimum_optin.scoring.surgeon.removal_scores", ones)
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


@pytest.mark.parametrize("model_type", ["swin with padded windows", "swinv2 with padded windows"])
def test_what_fills_up_windows_does_not_count(model_type, monkeypatch):
    """H of an attention in windows, against its inputs put back into the order of the image and cropped to it."""
    asked = []

    def ones(readers, units, shares):
        asked.append(readers[0].covariance)
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


def test_groups_that_share_a_consumer_are_scored_together():
    def group(layer, *consumers):
        return Group(layer, "channels", 4, 1, Cut(tuple(Consumer(path, 1) for path in consumers), ()))

    members = (group("layers.0", "a", "b"), group("layers.1", "c"), group("layers.2", "b", "d"), group("layers.3", "e"))
    groups = Groups(members, {}, {})
    sizes = dict.fromkeys("abcde", 10)
    assert [[each.layer[-1] for each in part] for part in parts_of(groups, sizes, 1)] == [["0", "2"], ["1"], ["3"]]
    assert [[each.layer[-1] for each in part] for part in parts_of(groups, sizes, 40)] == [["0", "1", "2"], ["3"]]
    assert [len(part) for part in parts_of(groups, sizes, 50)] == [4]


def test_the_order_of_wide_readers_is_found_in_float32():
    """Where sums in float64 would take too much memory: nearly the same costs."""
    weight, covariance, metric = _problem(40, 1)
    (exact,) = removal_scores([Reader(weight, covariance, [metric])], 40)
    (found,) = removal_scores([Reader(weight, covariance.float(), [metric])], 40)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.log(), exact.log(), atol=0.02, rtol=0)


def test_wide_units_are_scored_with_several_threads():
    """Of three key-value heads of 192 columns each: PyTorch's batched `solve` hangs or is wrong there."""
    weight, covariance, metric = _problem(3, 192)
    (expected,) = removal_scores([Reader(weight, covariance, [metric])], 3)
    torch.set_num_threads(2)
    try:
        (found,) = removal_scores([Reader(weight, covariance, [metric])], 3)
    finally:
        torch.set_num_threads(1)
    torch.testing.assert_close(found, expected)


def test_shares_say_which_metric_the_order_goes_by():
    """By one metric alone: its own costs, as without the other; and those of the other along the same order."""
    weight, covariance, metric = _problem(9, 1)
    *_, other = _problem(9, 1, seed=1)
    (alone,) = removal_scores([Reader(weight, covariance, [metric])], 9)
    found, beside = removal_scores([Reader(weight, covariance, [metric, other])], 9, [1.0, 0.0])
    torch.testing.assert_close(found, alone)
    assert beside.argsort().tolist() == alone.argsort().tolist()


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
