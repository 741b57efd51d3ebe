"""Ctrl-C at any line leaves a user's model and the process as they were. tests/fuzz/interrupts.py takes every line."""

import gc
import signal

import pytest
import torch
from interruptible import CASES
from interrupting import compared, interrupted_everywhere, seen
from tiny import tiny_batch, tiny_model
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from optimum_optin import convert_model, find_groups
from optimum_optin.keeping.doors import keeping, kept
from optimum_optin.keeping.snapshot import Snapshot
from optimum_optin.pricing import skeletons, unit_costs
from optimum_optin.running.freezing import frozen
from optimum_optin.storage import record
from optimum_optin.storage.structure import structure_of


@pytest.mark.parametrize(
    ("case", "how", "every"),
    [("pruning", "signal", 90), ("pruning", "raise", 90), ("scoring", "calls", 90), ("tracing", "twice", 150)],
)
def test_nothing_is_left(case, how, every):
    work, models = CASES[case]()
    found = interrupted_everywhere(work, models, how, chosen=lambda number, place: number % every == 7)
    assert len(found) > 12
    assert not {place: left for place, left in found.items() if left}


def test_what_inner_contexts_left_open_is_closed():
    """They are closed before the model is put back, and not when nobody looks at the traceback any more."""
    model = tiny_model("bert").train()
    before = seen({"model": model})

    def interrupted():
        left = frozen(model)
        left.__enter__()
        model.bert.register_forward_hook(lambda *_: None)
        model.bert.encoder.layer[0].forward = lambda *_: None
        torch.set_grad_enabled(False)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught, kept(model):
        interrupted()
    assert not compared(before, seen({"model": model}), "")
    del caught
    assert not compared(before, seen({"model": model}), "")


def test_half_a_mode_is_left_all_the_same():
    """Its own exit fails then, after the interruption, which is what is raised."""
    model, mode = tiny_model("bert"), FakeTensorMode()
    before = seen({"model": model})
    with pytest.raises(KeyboardInterrupt), kept(model), mode:
        mode.enter_stack.clear()
        raise KeyboardInterrupt
    assert not compared(before, seen({"model": model}), "")
    assert not is_in_torch_dispatch_mode()


def test_what_refers_to_itself_is_closed_before_switches_are_turned():
    model = tiny_model("bert")

    def interrupted():
        inside = switched()
        next(inside)
        box = [inside]
        box.append(box)
        raise KeyboardInterrupt

    def switched():
        try:
            yield
        finally:
            torch.set_grad_enabled(False)

    with pytest.raises(KeyboardInterrupt), kept(model):
        interrupted()
    gc.collect()
    assert torch.is_grad_enabled()


def test_an_error_on_the_way_out_is_no_reason_to_go_on(monkeypatch):
    """Counting goes on with weights where shapes do not do, but not after Ctrl-C in the mode of shapes."""
    model, batch = tiny_model("bert"), tiny_batch(tiny_model("bert"))

    def fail(*_):
        try:
            raise KeyboardInterrupt
        finally:
            raise IndexError("half a mode")

    monkeypatch.setattr(skeletons, "skeleton", fail)
    with pytest.raises(KeyboardInterrupt):
        unit_costs.macs_of_modules(model, batch)


def test_an_error_in_work_that_deals_with_an_interruption_stays_one():
    """As after Ctrl-C in training: what a user was dealing with before did not interrupt this."""

    @keeping("model")
    def fail(model):
        raise ValueError("now")

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(ValueError, match="now"):
            fail(tiny_model("bert"))


def test_a_second_one_while_all_is_put_back_comes_after_it(monkeypatch):
    model, restore = tiny_model("bert").train(), Snapshot.restore
    before, order = seen({"model": model}), []

    def slow(snapshot, **options):
        signal.raise_signal(signal.SIGINT)
        order.append("kept")
        restore(snapshot, **options)

    monkeypatch.setattr(Snapshot, "restore", slow)
    with pytest.raises(KeyboardInterrupt), kept(model):
        model.eval()
        raise KeyboardInterrupt("the first")
    assert order and not compared(before, seen({"model": model}), "")


def test_one_while_all_is_put_back_after_work_that_ended_is_raised(monkeypatch):
    model, restore = tiny_model("bert").train(), Snapshot.restore

    def slow(snapshot, **options):
        signal.raise_signal(signal.SIGINT)
        restore(snapshot, **options)

    monkeypatch.setattr(Snapshot, "restore", slow)
    with pytest.raises(KeyboardInterrupt), frozen(model):
        pass
    assert model.training and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_handlers_of_others_are_asked():
    model, heard = tiny_model("bert"), []
    signal.signal(signal.SIGINT, lambda *_: heard.append(0))
    try:
        with kept(model):
            signal.raise_signal(signal.SIGINT)
            assert heard == [0]
            signal.signal(signal.SIGINT, own := lambda *_: None)
        assert signal.getsignal(signal.SIGINT) is own  # set inside, by a callback say
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_conversion_is_whole_or_not_at_all(error, monkeypatch):
    model, batch = tiny_model("bert"), tiny_batch(tiny_model("bert"))
    groups = find_groups(model)
    structure = structure_of(groups, {group.key: torch.arange(group.units) < 2 for group in groups})
    before, dense = seen({"model": model}), model(**batch).logits

    def fail(*_):
        raise error("now")

    with monkeypatch.context() as patch, pytest.raises(error, match="now"):
        patch.setattr(record, "note", fail)
        convert_model(model, structure)
    assert not compared(before, seen({"model": model}), "")
    assert torch.equal(model(**batch).logits, dense)
    convert_model(model, structure)
    assert find_groups(model)[0].units == 2
