"""Matching and merging of tokens against loops that follow the paper's text, and schedules against counting."""

import dataclasses

import numpy
import pytest
import torch
from torch.nn.functional import cosine_similarity

from optimum_optin.merging.matching import match_tokens, merge_tokens, most_merges, take_tokens
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


def _greedy(losses, budget):
    """One pair after the other where it loses least for what it saves, by counting and `numpy.interp`."""
    best = dict.fromkeys(LAYERS[:-1], 0)
    while _cost(TokenSchedule(1, best)) > budget:
        rates = {}
        for layer in LAYERS[:-1]:
            left, further = 17, {}
            for name in LAYERS[:-1]:  # each at most as many as have a partner
                further[name] = min(best[name] + (name == layer), (left - 1) // 2)
                left -= further[name]
            saved = _cost(TokenSchedule(1, best)) - _cost(TokenSchedule(1, further))
            if saved > 0:
                rates[layer] = (_expected(further, losses) - _expected(best, losses)) / saved, further
        if not rates:
            return None
        best = min(rates.values(), key=lambda rate: rate[0])[1]
    return best


def _expected(merges, losses):
    """Merging a share of the tokens loses what it does of all tokens; beyond the last pair, as the last ones do."""
    total, lengths = 0.0, TokenSchedule(1, merges).lengths(LAYERS, 17)
    for layer, pairs in merges.items():
        share, sums = pairs * 16 / (lengths[layer] - 1), [sum(losses[layer][:count]) for count in range(9)]
        total += numpy.interp(share, range(9), sums) + max(share - 8, 0) * (sums[8] - sums[7])
    return total


@pytest.mark.parametrize("seed", range(4))
def test_a_scored_schedule_is_the_greedy_one(seed):
    draws = torch.rand(3, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) ** 2
    losses = {layer: draw.sort().values.tolist() for layer, draw in zip(LAYERS[:-1], draws, strict=True)}
    for share in (1.0, 0.999, 0.98, 0.9, 0.7, 0.5, 0.45, 0.3):
        found, expected = scored_schedule(COSTS, losses, share * DENSE), _greedy(losses, share * DENSE)
        assert (found and found.merges) == expected
        if found is not None:
            assert COSTS.of(found) == pytest.approx(_cost(found)) and COSTS.matching(found) >= 0


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_the_unit_of_costs_changes_no_schedule(scale):
    scaled = TokenCosts(
        {layer: [scale * cost for cost in costs] for layer, costs in COSTS.layers.items()},
        17,
        1,
        dict.fromkeys(LAYERS, scale * 0.1),
    )
    losses = {layer: [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0] for layer in LAYERS[:-1]}
    for share in (0.9, 0.6):
        assert scored_schedule(scaled, losses, scale * share * DENSE) == scored_schedule(COSTS, losses, share * DENSE)
        assert constant_schedule(scaled, scale * share * DENSE) == constant_schedule(COSTS, share * DENSE)


def test_matching_costs_what_it_compares_where_pairs_are_merged():
    pair = dict(zip(LAYERS, (1.0, 10.0, 100.0, 1000.0), strict=True))
    costs = TokenCosts({layer: [0.0] * 18 for layer in LAYERS}, 17, 1, pair)
    assert costs.matching(TokenSchedule(1)) == costs.of(TokenSchedule(1, {"layers.1": 0})) == 0
    assert costs.matching(TokenSchedule(1, {"layers.0": 3, "layers.2": 1})) == 8 * 8 + 100 * 6 * 7


def test_a_budget_that_is_just_met_takes_no_more_merges():
    losses = {layer: [1.0] * 8 for layer in LAYERS[:-1]}
    for find in (constant_schedule, lambda costs, budget: scored_schedule(costs, losses, budget)):
        schedule = find(COSTS, 0.7 * DENSE)
        assert find(COSTS, COSTS.of(schedule)) == schedule
        assert not any(find(COSTS, DENSE).merges.values())


@pytest.mark.parametrize("count", [True, 1.0, "1", None])
def test_counts_are_whole_numbers(count):
    with pytest.raises(ValueError, match="protected must be a whole number"):
        TokenSchedule(count)
    with pytest.raises(ValueError, match=r"layers\.0 must be a whole number"):
        TokenSchedule(1, {"layers.0": count})


def test_schedules_do_not_change():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenSchedule(1).protected = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        COSTS.tokens = 2


def test_the_last_layer_may_be_named_without_merges():
    TokenSchedule(1, {"layers.3": 0}).check(LAYERS, 17)


def test_tokens_are_taken_from_each_sample():
    hidden, places = torch.randn(3, 5, 4), torch.tensor([[0, 4], [1, 1], [3, 2]])
    expected = torch.stack([sample[chosen] for sample, chosen in zip(hidden, places, strict=True)])
    assert torch.equal(take_tokens(hidden, places), expected)


def test_without_protected_tokens_all_are_free():
    keys = torch.randn(2, 6, 4)
    assert torch.equal(match_tokens(keys, 2), match_tokens(keys, 2, 0))


def test_matching_stays_on_the_device_of_the_keys():
    keys = torch.empty(2, 9, 4, device="meta")
    matching = match_tokens(keys, 3, 1)
    assert (matching.device.type, matching.shape) == ("meta", (2, 9))
    merged, sizes = merge_tokens(keys, keys[..., 0], matching, 3)
    assert (merged.device.type, merged.shape, sizes.shape) == ("meta", (2, 6, 4), (2, 6))
