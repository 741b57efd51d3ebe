"""Progress over all stages: one bar that never goes back, and a callback that may stop a run anywhere."""

import re
from dataclasses import replace
from unittest import mock

import pytest
import torch
from tiny import tiny_batch, tiny_model, tiny_samples
from transformers.utils import logging

from optimum_optin import OptinConfig, OptinPruner, StoppedError
from optimum_optin.stages import progress as module
from optimum_optin.stages import resuming
from optimum_optin.stages.progress import progress, run_of, stage
from optimum_optin.stages.work_folder import working_in

CONFIG = OptinConfig(flops=0.5, probes=8)


class _OwnError(Exception):
    pass


class _Calls:
    """A callback that notes its calls, and stops after some."""

    def __init__(self, most=None, answer=lambda: False):
        self.seen, self.most, self.answer = [], most, answer

    def __call__(self, name, done, total):
        self.seen.append((name, done, total))
        return self.answer() if len(self.seen) == self.most else None


def _raise():
    raise _OwnError


def _state(model):
    """All that a run may leave on a model: hooks, flags, forwards, and numbers."""
    attributes = [
        (name, sorted(key for key in vars(part) if not key.startswith("_")), part.training)
        for name, part in model.named_modules()
    ]
    hooks = [len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules()]
    grads = [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()]
    return attributes, hooks, grads


def _logits(model):
    with torch.no_grad():
        return model(**tiny_batch(model)).logits


@pytest.mark.parametrize("way", [{"flops": 0.5}, {"max_drop": 10.0, "metric": "divergence"}], ids=["budget", "drop"])
def test_a_callback_sees_every_stage_from_its_beginning_to_its_end(way):
    calls = _Calls()
    OptinPruner(tiny_model()).prune(tiny_samples(32), CONFIG, callback=calls, **way)
    names = [name for name, done, _ in calls.seen if not done]
    times = 6 if "max_drop" in way else 1
    assert names[:3] == ["surgeon scores", "scores: removal orders", "search: compensation"]
    assert names.count("compensation") == times
    for before, after in zip(calls.seen, calls.seen[1:], strict=False):
        assert 0 <= before[1] <= before[2]
        if after[1]:
            assert after == (before[0], before[1] + 1, before[2])
        else:
            assert before[1] == before[2]  # all of the last loop was done


def test_the_bar_goes_from_nothing_to_all_and_never_back():
    places, update = [], module._Run.move

    def move(run, *given, **options):
        update(run, *given, **options)
        places.append(run.at)

    with mock.patch.object(module._Run, "move", move):
        OptinPruner(tiny_model()).prune(tiny_samples(32), CONFIG)
    assert places == sorted(places) and places[0] == 0 and places[-1] == pytest.approx(1)
    assert len(set(places)) > 20


@pytest.mark.parametrize("answer", [lambda: False, _raise], ids=["false", "an exception"])
def test_a_run_that_is_stopped_anywhere_leaves_nothing_behind(answer, tmp_path):
    model = tiny_model()
    pruner, before, expected = OptinPruner(model), _state(model), _logits(model)
    every = _Calls()
    pruner.prune(tiny_samples(32), CONFIG, callback=every)
    pruner.pruned_model = None
    for most in range(1, len(every.seen), 8):
        calls = _Calls(most, answer)
        with pytest.raises(_OwnError if answer is _raise else StoppedError) as caught:
            pruner.prune(tiny_samples(32), CONFIG, save_dir=tmp_path / "pruned", callback=calls)
        if answer is not _raise:
            name, done, total = calls.seen[-1]
            assert f"in {name!r}, after {done} of {total} steps" in str(caught.value)
        assert len(calls.seen) == most
        assert pruner.pruned_model is None and not (tmp_path / "pruned").exists()
        assert _state(model) == before and torch.equal(_logits(model), expected)


def _steps(calls):
    """How many steps were done: the first call of a loop tells where it begins."""
    return len(calls.seen) - len({name for name, _, _ in calls.seen})


def test_what_was_done_until_it_was_stopped_is_kept(tmp_path):
    """Though a minute has not passed: no step is done twice."""
    pruner, whole = OptinPruner(tiny_model()), _Calls()
    expected = pruner.score(tiny_samples(32), CONFIG, callback=whole)
    steps, scores = 0, None
    while scores is None:
        calls = _Calls(4)
        try:
            scores = pruner.score(tiny_samples(32), CONFIG, work_dir=tmp_path, callback=calls)
        except StoppedError:
            assert _steps(calls) > 0
        steps += _steps(calls)
    assert steps == _steps(whole) == 10
    for term, by_group in expected.terms.items():
        assert all(torch.equal(scores.terms[term][key], score) for key, score in by_group.items())


def test_an_error_of_a_step_keeps_no_half_of_it(tmp_path):
    class Sum:
        value = torch.zeros(())

        def tensors(self):
            return {"value": self.value}

        def restore(self, saved):
            self.value = saved["value"]

    def loop(fail):
        total = Sum()
        with working_in(tmp_path, {}):
            for item in resuming.resumed(range(4), "", "", name="loop", sums=total):
                total.value = total.value + 10**item
                if item == fail:
                    total.value = torch.tensor(torch.nan)
                    raise _OwnError
        return int(total.value)

    with mock.patch.object(resuming, "EVERY", 0), mock.patch.object(resuming, "SHARE", 0):
        with pytest.raises(_OwnError):
            loop(2)
        assert loop(None) == 1111


def test_the_time_that_is_left_goes_by_what_was_done_in_this_run(capsys):
    now = [100.0]
    logging.enable_progress_bar()
    try:
        with mock.patch("tqdm.std.time", lambda: now[0]), run_of([("one", 1.0), ("two", 1.0)]):
            with stage("one"):
                for _ in progress(range(2), "loop", "", done=6, total=8):  # an earlier run did three quarters
                    now[0] += 5.0
            shown = str(module._RUN.get().bar)
    finally:
        logging.disable_progress_bar()
    assert re.fullmatch(r"one: loop 8/8:  50%\|.*\| 00:10<00:40", shown)  # an eighth in 10 s, and half is left
    assert "one: loop 7/8" in capsys.readouterr().err


def test_without_a_plan_each_loop_has_a_bar_of_its_own_and_stages_do_nothing():
    with stage("scores"):
        assert list(progress([1, 2], "title", "unit")) == [1, 2]
    with run_of([("other", 1.0)]) as _, stage("scores"):  # a stage that is not in the plan
        assert list(progress([1, 2], "title", "unit")) == [1, 2]


def test_a_plan_inside_another_does_not_disturb_it():
    calls = _Calls()
    inner = OptinPruner(tiny_model())

    def callback(name, done, total):
        if done == 2 and not calls.seen:
            inner.score(tiny_samples(16), replace(CONFIG, probes=2), callback=calls)

    outer = _Calls()
    OptinPruner(tiny_model()).score(
        tiny_samples(32), CONFIG, callback=lambda *given: (callback(*given), outer(*given))[1]
    )
    assert calls.seen and outer.seen[-1][1] == outer.seen[-1][2]
