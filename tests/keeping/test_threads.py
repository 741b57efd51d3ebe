"""Threads: what several do on one model, or on several, is what they would do one after the other; or it is refused."""

import copy
import os
import signal
import stat
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from interruptible import pruning
from interrupting import compared, seen
from tiny import output_of, tiny_batch, tiny_model, tiny_samples
from torch import nn
from torch.nn.modules import module as global_hooks

from optimum_optin import OptinConfig, OptinPruner, find_groups, masked
from optimum_optin.keeping import turns
from optimum_optin.keeping.doors import kept
from optimum_optin.pricing.unit_costs import run_counted
from optimum_optin.running.freezing import frozen

FAST = OptinConfig(probes=4, search="ranked")


def pruned(model, flops, folder=None):
    return OptinPruner(model).prune(tiny_samples(8), FAST, flops=flops, save_dir=folder)


def in_threads(*works):
    """What each returns, begun together."""
    together = threading.Barrier(len(works))

    def begin(work):
        together.wait()
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [each.result() for each in [pool.submit(begin, work) for work in works]]


def in_another_thread(work):
    """What it raises; `None` if it raises nothing."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).exception()


def looks(model):
    modes = [(name, module.training) for name, module in model.named_modules()]
    tensors = [(name, each.requires_grad, each.tolist()) for name, each in model.named_parameters()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return modes, tensors, hooks, [sorted(vars(module)) for module in model.modules()]


@pytest.mark.parametrize("shared", [True, False], ids=["one model", "two models"])
def test_threads_get_what_they_would_get_one_after_the_other(shared):
    models = [tiny_model("bert").train() for _ in range(2)]
    expected = [looks(pruned(copy.deepcopy(model), flops)) for model, flops in zip(models, (0.6, 0.4), strict=True)]
    models = models[:1] * 2 if shared else models
    before = seen(dict(enumerate(models)))
    found = in_threads(lambda: pruned(models[0], 0.6), lambda: pruned(models[1], 0.4))
    assert [looks(each) for each in found] == expected
    assert not compared(before, seen(dict(enumerate(models))), "")


def test_a_model_that_is_pruned_is_not_run_by_another_thread():
    model, other, batch = tiny_model("bert"), tiny_model("vit"), tiny_batch(tiny_model("bert"))
    pixels, errors, expected = tiny_batch(other), [], output_of(other, tiny_batch(other))

    def look(stage, done, total):
        errors.append(in_another_thread(lambda: model(**batch)))
        errors.append(in_another_thread(lambda: model.bert.encoder.layer[1](torch.zeros(1, 3, 32))))
        assert in_another_thread(lambda: torch.testing.assert_close(output_of(other, pixels), expected)) is None

    OptinPruner(model).score(tiny_samples(8), FAST, callback=look)
    assert len(errors) > 4
    assert {str(each).partition(":")[0] for each in errors} == {
        "this BertForSequenceClassification is being pruned or measured by another thread, which masks its units and "
        "switches its modes meanwhile"
    }
    assert in_another_thread(lambda: model(**batch)) is None


def test_copies_have_no_guards():
    model = tiny_model("bert")
    with kept(model), frozen(model):
        copied = copy.deepcopy(model)
        assert all("_compiled_call_impl" in vars(module) for module in model.modules())
    for module in (*model.modules(), *copied.modules()):
        assert "_compiled_call_impl" not in vars(module)


def test_a_compiled_model_is_compiled_afterwards():
    model, calls = tiny_model("bert"), []
    vars(model)["_compiled_call_impl"] = compiled = lambda *args, **kwargs: calls.append(0)
    with kept(model):
        model()
        with frozen(model):
            model(**tiny_batch(model))  # its own forward
    assert len(calls) == 1 and vars(model)["_compiled_call_impl"] is compiled


def test_what_is_counted_is_one_threads():
    """PyTorch's own tracker hooks every module of the process."""

    class Slow(nn.Linear):
        def forward(self, x):
            hooks.extend(len(value) for name, value in vars(global_hooks).items() if name.endswith("_hooks"))
            errors.append(in_another_thread(lambda: other(torch.zeros(5, 8))))
            return super().forward(x)

    other, errors, hooks = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), [], []
    counter = run_counted(Slow(4, 6), {"x": torch.zeros(1, 4)})
    assert {name: sum(each.values()) for name, each in counter.get_flop_counts().items()} == {"Global": 48, "Slow": 48}
    assert errors == [None] and not any(hooks)


def test_masks_are_one_threads():
    model = tiny_model("bert")
    groups = find_groups(model)
    with masked(model, groups, {groups[0].key: torch.zeros(groups[0].units)}):
        assert "another thread" in str(in_another_thread(lambda: model(**tiny_batch(model))))
    assert in_another_thread(lambda: model(**tiny_batch(model))) is None


def test_one_that_waits_says_so_and_can_be_interrupted(monkeypatch, caplog):
    model, inside, done = tiny_model("bert"), threading.Event(), threading.Event()

    def hold():
        with kept(model):
            inside.set()
            done.wait(60)

    monkeypatch.setattr(turns, "_PATIENCE", 0.0)
    messages = []
    monkeypatch.setattr(turns.logger, "warning", messages.append)
    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    threading.Timer(0.3, signal.raise_signal, [signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt), frozen(model):
        pass
    assert len(messages) == 1 and "another thread is pruning or measuring a model" in messages[0]
    done.set()
    thread.join()
    with frozen(model):
        assert not model.training


def test_a_fork_does_not_wait_for_a_thread_that_it_has_not():
    model, inside, done = tiny_model("bert"), threading.Event(), threading.Event()

    def hold():
        with kept(model):
            inside.set()
            done.wait(60)

    thread = threading.Thread(target=hold)
    thread.start()
    inside.wait()
    child = os.fork()
    if not child:
        signal.alarm(20)
        with turns.my_turn():
            os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    done.set()
    thread.join()


def test_threads_that_save_leave_the_mask_of_the_process(tmp_path, monkeypatch):
    """To read it, `os.umask` sets it: of two threads that do, one may put back what the other has set."""
    calls, set_mask = [], os.umask
    monkeypatch.setattr(os, "umask", lambda mask: (calls.append(mask), set_mask(mask))[1])
    model = tiny_model("bert")
    in_threads(*(lambda place=place: pruned(model, 0.5, tmp_path / place) for place in "abc"))
    assert not calls
    earlier = set_mask(0o022)
    set_mask(earlier)
    for place in "abc":
        files = list((tmp_path / place).glob("*.json"))  # safetensors gives its own to their owner alone
        assert len(files) > 1
        assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o666 & ~earlier}


def test_what_is_interrupted_lets_the_others_go_on():
    work, models = pruning()
    started = threading.Event()
    models["model"].register_forward_pre_hook(lambda *_: started.set())

    def interrupt():
        started.wait()
        time.sleep(0.05)
        signal.raise_signal(signal.SIGINT)

    before = seen(models)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        work()
    thread.join()
    assert not compared(before, seen(models), "")
    assert in_another_thread(lambda: OptinPruner(tiny_model("bert")).check(FAST)) is None
