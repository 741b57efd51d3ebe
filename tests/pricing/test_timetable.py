"""What is measured for a timetable and what comes of it, with cuts whose times are made up."""

from types import SimpleNamespace

import pytest
import torch
from tiny import tiny_batch, tiny_model

from optimum_optin import find_groups
from optimum_optin.architectures.group import Consumer, Cut, Group
from optimum_optin.pricing import timetable
from optimum_optin.pricing.stairs import Stairs
from optimum_optin.pricing.timetable import Cuts, Timetable, _joined_multiple, _multiple, _numbers, _stairs
from optimum_optin.timing.ratios import Ratio


def _group(units, role="neurons", layer="layers.0", **fields):
    return Group(layer, role, units, 1, Cut((Consumer("a"),), ()), **fields)


def _ratio(value, error=0.0):
    return Ratio(value, error, value, 1.0, 6)


@pytest.mark.parametrize(
    ("group", "kinds", "expected"),
    [
        (_group(32), 4, [0, 1, 4, 8, 12, 16, 20, 24, 28]),
        (_group(32), 5, [0, 1, 8, 16, 24]),
        (_group(4, "heads"), 1, [0, 1, 2, 3]),
        (_group(32, "channels"), 1, [1, 4, 8, 12, 16, 20, 24, 28]),  # some must stay
        (_group(32, "channels", least=6), 1, [6, 8, 12, 16, 20, 24, 28]),
        (_group(8, "query_heads", parts=2), 1, [2, 4, 6]),
        (_group(8, "query_heads", parts=2, least=4), 1, [4, 6]),
        (_group(8, "query_heads", parts=4, least=2), 1, [4]),
        (_group(64, "expert_neurons", parts=2), 5, [0, 2, 16, 32, 48]),
        (_group(64, multiple=8), 1, [0, 8, 16, 24, 32, 40, 48, 56]),
        (_group(64, multiple=8, parts=16), 5, [0, 16, 32, 48]),
        (_group(255), 5, [0, 1, 64, 128, 191]),
        (_group(256 + 24), 5, [0, 1, 64, 144, 208]),  # in sixteens
        (_group(256), 1, [0, 1, 32, 64, 96, 128, 160, 192, 224]),
        (_group(1023), 5, [0, 1, 256, 512, 768]),
        (_group(1024 + 120), 5, [0, 1, 256, 576, 832]),  # in 64s: 286, 572, 858
        (_group(1024), 5, [0, 1, 256, 512, 768]),
        (_group(1000), 5, [0, 1, 256, 496, 752]),  # in sixteens: 250, 500, 750
        (_group(1, "heads"), 1, [0]),
        (_group(1, "channels"), 1, []),
    ],
)
def test_the_numbers_that_are_measured(group, kinds, expected):
    assert _numbers([group, group], kinds) == expected


def test_shares_are_of_what_a_sublayer_takes_more_than_with_none_left():
    kind = [_group(32), _group(32, layer="layers.1")]
    found = _stairs(kind, {0: _ratio(0.5), 16: _ratio(0.75)}, None)
    assert found == Stairs(("layers.0.neurons", "layers.1.neurons"), (0, 16, 32), (0.0, 0.25, 0.5), 1)


def test_what_none_would_take_is_on_the_line_through_the_least():
    kind = [_group(32, "channels")]
    found = _stairs(kind, {2: _ratio(0.55), 12: _ratio(0.7)}, None)  # 0.015 for each: 0.52 for none
    assert found.units == (0, 2, 12, 32)
    assert found.shares == pytest.approx((0.0, 0.03, 0.18, 0.48))


class _Cuts:
    """Times that depend on how many units the first group keeps."""

    def __init__(self, share_of, error=0.0):
        self.share_of, self.error, self.model, self.asked = share_of, error, "model", []

    def against(self, kind, masks, other):
        one, another = (int(each[kind[0].key].sum()) for each in (masks, other))
        assert all(len({int(mask.sum()) for mask in each.values()}) == 1 for each in (masks, other))
        self.asked.append((one, another))
        return _ratio(self.share_of(one) / self.share_of(another), self.error)

    def against_dense(self, groups, masks):
        self.asked.append([int(masks[group.key].sum()) for group in groups])
        return _ratio(self.share_of(masks), self.error)


@pytest.mark.parametrize("aligned", [1, 2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("parts", [1, 3])
def test_widths_that_are_slow_give_the_multiple(aligned, parts):
    """The widths to compare are those just below the middle one: slow are all that are no multiple."""
    kind = [_group(256 * parts, parts=parts), _group(256 * parts, layer="layers.1", parts=parts)]
    cuts = _Cuts(lambda units: 1.0 if units // parts % aligned == 0 else 1.5)
    measured = [0, parts, *(64 * place * parts for place in range(1, 4)), 256 * parts]
    expected = 64 if aligned == 128 else aligned
    assert _multiple(kind, measured, cuts) == (1 if expected == 1 else expected * parts)
    tried = [each for each in (1, 2, 4, 8, 16, 32, 64) if each <= expected]
    assert cuts.asked == [((128 - less) * parts, 128 * parts) for less in tried]


def test_where_no_middle_width_is_aligned_there_is_no_multiple():
    cuts = _Cuts(lambda units: 9.0)
    for units, measured in ((48, [0, 1, 12, 24, 36, 48]), (256, [0, 1, 32, 96, 160]), (256, [0, 64, 100])):
        assert _multiple([_group(units)], measured, cuts) == 1
    assert not cuts.asked
    assert _multiple([_group(257)], [0, 64, 128], cuts) == 1, "half of 257 is 128"
    assert cuts.asked == [(127, 128)]


@pytest.mark.parametrize(
    ("slower", "error", "multiple"), [(1.019, 0.0, 1), (1.021, 0.0, 2), (1.039, 0.02, 1), (1.041, 0.02, 2)]
)
def test_a_width_is_slow_by_more_than_two_percent_and_two_errors(slower, error, multiple):
    cuts = _Cuts(lambda units: slower if units % 2 else 1.0, error)
    assert _multiple([_group(128)], [0, 64], cuts) == multiple


@pytest.fixture
def joined(monkeypatch):
    """Find the multiple of two groups whose MACs are the product of what is left, where time is in stairs."""

    def run(aligned, units=(64, 48), *, parts=1, worth=0.8, error=0.0, follows=1.0):
        groups = [_group(each * parts, layer=f"layers.{place}", parts=parts) for place, each in enumerate(units)]

        def macs(masks):
            return 500.0 * torch.prod(torch.stack([masks[group.key].double().mean() for group in groups])).item() + 500

        def share_of(masks):
            less = {group.key: group.units // parts - int(masks[group.key].sum()) // parts for group in groups}
            whole = all(each % aligned == 0 for each in less.values())
            return 1 - (follows if whole else 0.01) * worth * (1 - macs(masks) / 1000)

        def total_cost(model, members, tokens, schedule=None, masks=None):
            assert (model, members, tokens, schedule) == ("model", groups, 9, None)
            return 1000.0 if masks is None else macs(masks)

        monkeypatch.setattr(timetable, "total_cost", total_cost)
        cuts = _Cuts(share_of, error)
        at_half = worth * (1 - macs({group.key: group.every_other() for group in groups}) / 1000)
        return _joined_multiple(groups, cuts, 9, at_half), cuts.asked

    return run


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("aligned", [1, 2, 4, 8, 16])
def test_the_smallest_cut_that_saves_time_as_it_saves_macs_gives_the_multiple(joined, aligned, parts):
    tried = [each for each in (1, 2, 4, 8, 16) if each <= aligned]
    expected = [[(64 - each) * parts, (48 - each) * parts] for each in tried]
    assert joined(aligned, parts=parts) == (aligned, expected)


@pytest.mark.parametrize(
    ("units", "multiple"), [((64, 48), 16), ((64, 16), 8), ((64, 17), 8), ((9, 2), 1), ((9, 1), 1)]
)
def test_where_no_cut_saves_time_the_largest_that_leaves_half_does(joined, units, multiple):
    found, asked = joined(1000, units)
    assert found == multiple
    assert [each[1] for each in asked] == [units[1] - each for each in (1, 2, 4, 8, 16) if each < units[1] // 2]


@pytest.mark.parametrize(("follows", "error", "multiple"), [(0.55, 0.0, 1), (0.45, 0.0, 16), (0.45, 0.01, 1)])
def test_half_of_what_macs_save_is_enough(joined, follows, error, multiple):
    assert joined(1, follows=follows, error=error)[0] == multiple


def test_tables_are_in_seconds_and_a_timetable_comes_back_from_json():
    stairs = Stairs(("a", "b"), (0, 2), (0.0, 0.4), 1), Stairs(("c",), (0, 1), (0.0, 0.3), 1)
    table = Timetable(2.0, stairs, 0.1, 4, 0.02)
    assert {key: float(each[-1]) for key, each in table.tables().items()} == pytest.approx(
        {"a": 0.4, "b": 0.4, "c": 0.6}, rel=1e-6
    )
    assert Timetable.from_dict(table.to_dict()) == table


def test_cuts_are_timed_beside_the_dense_model_and_share_its_embeddings(monkeypatch):
    model = tiny_model().eval()
    groups, batch, ran = find_groups(model), tiny_batch(model), []
    ratios = iter([Ratio(0.9, 0.01, 1.8, 2.0, 6), Ratio(0.8, 0.03, 2.4, 3.0, 6), Ratio(0.7, 0.02, 7.0, 10.0, 6)])
    monkeypatch.setattr(timetable, "runner", lambda *given: given)
    monkeypatch.setattr(timetable, "ratio_of", lambda run, base: ran.append((run, base)) or next(ratios))
    masks = {group.key: group.every_other() for group in groups}
    cuts = Cuts(model, batch, "eager")
    assert [cuts.against_dense(groups, masks).value for _ in range(3)] == [0.9, 0.8, 0.7]
    assert (cuts.seconds(), cuts.noise()) == (3.0, 0.03)
    for (cut, given, backend), base in ran:
        assert base[0] is model and given is batch and backend == "eager"
        assert len(cut.bert.encoder.layer[0].intermediate.dense.weight) == int(masks["layers.0.neurons"].sum())
        assert cut.bert.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
    compiled = SimpleNamespace(dense=Cuts(model, batch, "compile")._dense[0])
    assert compiled.dense is not model, "what others do to a model is done to a copy"
    assert compiled.dense.bert.embeddings.word_embeddings.weight is model.bert.embeddings.word_embeddings.weight
