"""Ctrl-C at any line leaves a user's model and the process as they were. tests/fuzz/interrupts.py takes every line."""

import signal

import pytest
import torch
from interruptible import CASES
from interrupting import compared, interrupted_everywhere, seen
from tiny import tiny_batch, tiny_model

from optimum_optin import convert_model, find_groups
from optimum_optin.keeping.doors import kept
from optimum_optin.keeping.snapshot import Snapshot
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
