"""Passes that pause: they come to what they come to alone, errors reach the caller, and nothing is left behind."""

import pytest
import torch
from tiny import tiny_batch, tiny_model
from torch import nn

from optimum_optin.passes.pauses import HeldPass, running_pass


@pytest.fixture
def model():
    """A model every linear of which stops the pass that runs it."""
    model = tiny_model()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(_stop)
    return model


def _stop(module, args):
    if (held := running_pass()) is not None:
        held.pause(module)


@torch.no_grad()
def test_passes_side_by_side_come_to_what_each_comes_to_alone(model):
    batches = [tiny_batch(model, seed=seed) for seed in range(6)]
    passes = [HeldPass(lambda batch=batch: model(**batch).logits) for batch in batches]
    turns = 0
    while not all(each.ended for each in passes):
        for each in passes[turns % 2 :: 2]:
            if not each.ended:
                each.go_on()
                assert (each.place is None) == each.ended
        turns += 1
    assert turns > 2 * 3 * 6
    for each, batch in zip(passes, batches, strict=True):
        assert torch.equal(each.result, model(**batch).logits)
    assert running_pass() is None


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_errors_reach_the_caller_and_the_other_passes_go_on(error):
    def work(fails):
        running_pass().pause("first")
        if fails:
            raise error("here")
        return 1

    good, bad = HeldPass(lambda: work(False)), HeldPass(lambda: work(True))
    for each in (good, bad):
        each.go_on()
    with pytest.raises(error, match="here"):
        bad.go_on()
    assert bad.ended
    good.go_on()
    assert good.result == 1


def test_what_a_pass_holds_open_is_closed_with_it():
    closed = []

    def work():
        try:
            running_pass().pause("inside")
            closed.append("went on")
        finally:
            running_pass().pause("once more")  # does not stop what is being ended
            closed.append("closed")

    started, never = HeldPass(work), HeldPass(work)
    started.go_on()
    for each in (started, never):
        each.close()
        each.close()
        assert each.ended and each.place is None
    assert closed == ["closed"]


def test_what_a_forward_switches_on_stays_with_its_pass():
    def work():
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
            torch.backends.cuda.enable_math_sdp(False)
            running_pass().pause("inside")
            inside = torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.backends.cuda.math_sdp_enabled()
        torch.backends.cuda.enable_math_sdp(True)
        return inside

    def outside():
        return torch.is_autocast_enabled("cpu"), torch.is_grad_enabled(), torch.backends.cuda.math_sdp_enabled()

    passes = [HeldPass(work) for _ in range(3)]
    for each in passes:
        each.go_on()
        assert outside() == (False, True, True)
    for each in passes:  # the first to open is the first to close
        each.go_on()
        assert outside() == (False, True, True)
        assert each.result == (True, False, False)
