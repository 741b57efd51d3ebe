"""When a cut that was timed is searched for again, with what budget, and which one is taken; times are made up."""

import dataclasses
from types import SimpleNamespace

import pytest

from optimum_optin import OptinConfig
from optimum_optin.search import in_time
from optimum_optin.search.candidates import Choice
from optimum_optin.timing.ratios import Ratio

FIRST = Choice({"layers.0.heads": None}, 2.5, None, ("layers.1.heads",))


@pytest.fixture
def run(monkeypatch):
    """Run `in_time` where the cuts take these shares of the dense time, one after the other; return what came of it.

    It is the choice, which cut it is, and the budgets of the searches after the first.
    """

    def go(times, latency=0.5, *, limit=None, dense=1.0, spent=1.0, base=1.0, fails=False):
        limit = latency if limit is None else limit
        price = SimpleNamespace(name="latency", limit=limit, dense=dense, cost_of=lambda masks: spent * limit)
        made, asked, timed = [FIRST], [], iter(times)

        def ranked(model, groups, scores, config, *, output_weight, sublayers):
            assert (model, groups, output_weight, sublayers) == ("model", "groups", 2.5, ("layers.1.heads",))
            asked.append(config.latency)
            if fails:
                raise ValueError("the budget does not pay for what must stay")
            made.append(Choice({"layers.0.heads": len(made)}, output_weight, None, sublayers))
            return made[-1]

        def time_of(model, groups, masks, batch, backend):
            assert (model, groups, batch, backend) == ("model", "groups", ("model", 9), "onnx")
            assert masks is made[-1].masks
            share = next(timed)
            return Ratio(share, 0.0, share * base, base, 6)

        other = SimpleNamespace(name="params")
        monkeypatch.setattr(in_time, "prices_of", lambda *_: [other, price])
        monkeypatch.setattr(in_time, "timed_batch", lambda model, tokens, config: (model, tokens))
        monkeypatch.setattr(in_time, "time_of", time_of)
        monkeypatch.setattr(in_time, "ranked", ranked)
        config = OptinConfig(latency=latency, latency_backend="onnx")
        found = in_time.in_time("model", "groups", SimpleNamespace(tokens=9), config, FIRST)
        assert next(timed, None) is None, "all cuts were timed"
        (number,) = (number for number, each in enumerate(made) if each.masks is found.masks)
        assert found == dataclasses.replace(made[number], timed=found.timed)
        assert found.timed.value == times[number]
        return number, asked

    return go


@pytest.mark.parametrize("share", [0.486, 0.5, 0.514])
def test_what_is_near_is_taken(run, share):
    assert run([share]) == (0, [])


@pytest.mark.parametrize(("share", "again"), [(0.484, 1 - 0.5 * 0.5 / 0.516), (0.516, 1 - 0.5 * 0.5 / 0.484)])
def test_what_is_more_than_three_percent_off_is_searched_for_again(run, share, again):
    """By what the first cut saved of what it was to save."""
    assert run([share, 0.5]) == (1, [pytest.approx(again)])


def test_then_by_the_line_through_the_nearest_on_both_sides(run):
    second = 1 - 0.5 * 0.5 / 0.4
    third = second + (0.5 - 0.45) / (0.6 - 0.45) * (0.5 - second)
    fourth = second + (0.5 - 0.45) / (0.52 - 0.45) * (third - second)
    assert run([0.6, 0.45, 0.52, 0.49]) == (3, [pytest.approx(each) for each in (second, third, fourth)])


def test_of_several_on_one_side_the_last_tells(run):
    second = 1 - 0.5 * 0.5 / 0.4
    third = 1 - 0.5 * (1 - second) / 0.45
    assert run([0.6, 0.55, 0.5]) == (2, [pytest.approx(each) for each in (second, third)])


def test_after_three_more_searches_the_nearest_is_taken(run, caplog):
    number, asked = run([0.4, 0.44, 0.54, 0.44])
    assert (number, len(asked)) == (2, 3)
    assert "the cut model takes 540ms, 54.0% of the dense model's time, more than the 50.0%" in caplog.text


@pytest.mark.parametrize(("best", "told"), [(0.52, True), (0.48, False), (0.516, True), (0.514, False)])
def test_a_model_that_takes_longer_is_told(run, caplog, best, told):
    times = [best] if 0.485 < best < 0.515 else [best, 0.55, 0.55, 0.55]
    assert run(times)[0] == 0
    assert ("more than the 50.0% that was asked for" in caplog.text) == told


@pytest.mark.parametrize(("spent", "searches"), [(0.96, 0), (0.98, 1)])
def test_what_takes_less_is_searched_for_again_where_the_budget_was_spent(run, spent, searches):
    assert len(run([0.4, 0.5][: 1 + searches], spent=spent)[1]) == searches
    assert len(run([0.6, 0.5], spent=spent)[1]) == 1, "what takes more, always"


@pytest.mark.parametrize("share", [1.0, 1.25])
def test_what_saved_nothing_is_asked_to_save_more_in_proportion(run, share):
    assert run([share, 0.5]) == (1, [pytest.approx(0.5 * 0.5 / share)])


def test_a_budget_that_is_none_is_not_searched_for(run):
    assert run([0.5], 0.2) == (0, []), "1 - 0.8 * 0.8 / 0.5 is below 0"
    assert run([0.9, 1.0], 1.0) == (1, [1.0]), "all of it is one"


def test_a_budget_that_does_not_pay_for_what_must_stay_ends_the_search(run):
    number, asked = run([0.6], fails=True)
    assert number == 0 and len(asked) == 1


def test_a_budget_in_seconds_is_a_share_of_the_dense_time_as_it_is_measured_beside_the_cut(run):
    """2 ms of 4; the search went by a timetable in which the dense model takes 5."""
    assert run([0.5], "2ms", limit=2e-3, dense=5e-3, base=4e-3) == (0, [])
    number, asked = run([0.6, 0.5], "2ms", limit=2e-3, dense=5e-3, base=4e-3)
    assert (number, asked) == (1, [pytest.approx(1 - 0.5 * 0.6 / 0.4)])
