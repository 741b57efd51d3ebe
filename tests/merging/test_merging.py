"""Matching and merging of tokens against loops that follow the paper's text, and schedules against counting."""

import pytest
import torch
from torch.nn.functional import cosine_similarity

from optimum_optin.merging.matching import match_tokens, merge_tokens, most_merges
from optimum_optin.merging.schedule import TokenCosts, TokenSchedule, constant_schedule, scored_schedule

LAYERS = [f"layers.{index}" for index in range(4)]


def _matched_pairs(keys, merges, protected):
    """ToMe, Sec. 3: the pairs (merged token, its partner) of one sample."""
    tokens = range(protected, len(keys))
    partners, others = tokens[::2], tokens[1::2]
    edges = []
    for other in others:
        similarities = [float(cosine_similarity(keys[other], keys[partner], dim=0)) for partner in partners]
        best = max(range(len(partners)), key=lambda index: similarities[index])
        edges.append((similarities[best], other, partners[best]))
    return [(other, partner) for _, other, partner in sorted(edges, reverse=True)[:merges]]


@pytest.mark.parametrize(("tokens", "protected", "merges"), [(9, 1, 3), (10, 2, 4), (8, 0, 4), (7, 1, 0), (2, 1, 0)])
def test_matching_and_merging_are_the_paper_s(tokens, protected, merges):
    generator = torch.Generator().manual_seed(tokens)
    keys, hidden = torch.randn(3, tokens, 5, generator=generator), torch.randn(3, tokens, 6, generator=generator)
    sizes = torch.randint(1, 4, (3, tokens), generator=generator).float()
    matching = match_tokens(keys, merges, protected)
    merged, merged_sizes = merge_tokens(hidden, sizes, matching, merges)
    assert merged.shape == (3, tokens - merges, 6)
    for sample in range(3):
        clusters = {token: [token] for token in range(tokens)}
        for other, partner in _matched_pairs(keys[sample], merges, protected):
            clusters[partner] += clusters.pop(other)
        places = matching[sample].tolist()
        assert places[:protected] == list(range(protected))
        for members in clusters.values():
            (place,) = {places[member] for member in members}
            weight = sizes[sample, members]
            mean = (hidden[sample, members] * weight[:, None]).sum(0) / weight.sum()
            torch.testing.assert_close(merged[sample, place], mean)
            assert merged_sizes[sample, place] == weight.sum()
        assert len(set(places)) == len(clusters) == tokens - merges


def test_half_of_the_free_tokens_have_a_partner():
    assert [most_merges(tokens, 1) for tokens in (0, 1, 2, 3, 4, 50)] == [0, 0, 0, 1, 1, 24]


def test_lengths_are_what_is_left_and_never_less_than_merging_can_leave():
    schedule = TokenSchedule(1, {"layers.0": 6, "layers.2": 8})
    assert list(schedule.lengths(LAYERS, 17).values()) == [17, 11, 11, 6]
    assert list(schedule.lengths(LAYERS, 9).values()) == [9, 5, 5, 3]
    schedule.check(LAYERS, 23)


@pytest.mark.parametrize(
    ("merges", "message"),
    [
        ({"layers.0": 9}, "9 merges after layers.0, which has 17 tokens, 1 of them protected: at most 8"),
        ({"layers.0": 8, "layers.1": 5}, "5 merges after layers.1, which has 9 tokens"),
        ({"layers.3": 1}, "after layers.3, the last layer, save nothing"),
        ({"layers.7": 1}, "'layers.7' is no layer of this model; it has layers.0, "),
    ],
)
def test_more_merges_than_tokens_are_refused(merges, message):
    with pytest.raises(ValueError, match=message):
        TokenSchedule(1, merges).check(LAYERS, 17)


UNSURE = {"protected": 1, "merges": {}, "differences": "perhaps"}


@pytest.mark.parametrize(
    "data",
    [None, {}, {"protected": 1}, {"protected": 1, "merges": [1]}, UNSURE, {"protected": 1, "merges": {}, "code": ""}],
)
def test_a_damaged_schedule_is_refused(data):
    with pytest.raises(ValueError, match="token schedule must look like"):
        TokenSchedule.from_json(data)
    with pytest.raises(ValueError, match="layers.0 must be a whole number"):
        TokenSchedule.from_json({"protected": 1, "merges": {"layers.0": -1}})


@pytest.mark.parametrize("differences", [True, False])
def test_schedules_round_trip(differences):
    schedule = TokenSchedule(1, {"layers.0": 6, "layers.2": 8}, differences)
    assert TokenSchedule.from_json(schedule.to_json()) == schedule


# Of a layer with n tokens: linears, and attention
COSTS = TokenCosts({layer: [10.0 * n + n**2 for n in range(18)] for layer in LAYERS}, 17, 1, dict.fromkeys(LAYERS, 0.1))
DENSE = 4 * COSTS.layers["layers.0"][17]


def _cost(schedule):
    """Layers by their lengths, and every second token that can be merged compared with those between."""
    cost = 0.0
    for layer, length in schedule.lengths(LAYERS, 17).items():
        free = length - 1
        cost += 10.0 * length + length**2 + (0.1 * (free // 2) * (free - free // 2)) * bool(schedule.merges.get(layer))
    return cost


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.5])
def test_a_constant_schedule_is_the_smallest_that_fits(share):
    schedule = constant_schedule(COSTS, share * DENSE)
    pairs = schedule.merges["layers.0"]
    assert _cost(schedule) <= share * DENSE
    assert _cost(TokenSchedule(1, dict.fromkeys(LAYERS[:-1], pairs - 1))) > share * DENSE
    schedule.check(LAYERS, 17)


@pytest.mark.parametrize("share", [0.95, 0.8, 0.6, 0.5])
def test_a_scored_schedule_merges_where_that_is_cheap(share):
    losses = {"layers.0": [1.0] * 8, "layers.1": [9.0] * 8, "layers.2": [0.0] * 2 + [50.0] * 6}
    schedule = scored_schedule(COSTS, losses, share * DENSE)
    assert _cost(schedule) <= share * DENSE
    schedule.check(LAYERS, 17)
    assert schedule.merges["layers.2"] >= 2  # free of loss
    # A pair after the first layer saves in three layers, one after the second in two, at nine times the loss.
    assert schedule.merges["layers.1"] == 0 or schedule.merges["layers.0"] == 8


def test_nothing_is_merged_before_layers_that_cost_nothing():
    layers = COSTS.layers | {"layers.3": [0.0] * 18}
    costs = TokenCosts(layers, 17, 1, COSTS.pair)
    schedule = scored_schedule(costs, {layer: [1.0] * 8 for layer in LAYERS[:-1]}, 0.6 * DENSE)
    assert schedule.merges["layers.2"] == 0 < schedule.merges["layers.0"]


def test_no_schedule_reaches_a_budget_below_what_merging_can_leave():
    losses = {layer: [1.0] * 8 for layer in LAYERS[:-1]}
    assert scored_schedule(COSTS, losses, 0.3 * DENSE) is None
    assert constant_schedule(COSTS, 0.3 * DENSE) is None
