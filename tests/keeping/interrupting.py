"""Work that is interrupted at every line of our package, each time in a fork that then looks for what is left behind.

A run is traced. Wherever it comes to a line for the first time (or the `visits` first times), the process forks: the
child has Ctrl-C there, and compares everything that can be seen of the models and of the process with what was before
the work, while the exception is at hand and after that; the parent goes on.
"""

import gc
import json
import os
import random
import signal
import sys
import threading
import warnings
import weakref
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from torch.nn.modules import module as global_hooks
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack
from transformers.utils import logging

import optimum_optin
from optimum_optin.passes.pauses import HeldPass

PACKAGE = str(Path(optimum_optin.__file__).parent) + os.sep


_ELSEWHERE = weakref.WeakSet()  # threads of the process before, of which a fork has none


def interrupted_everywhere(work, models, how="signal", visits=1, chosen=lambda number, place: True):
    """Interrupt `work` at lines of the package, and see what is left.

    Args:
        work: a function without arguments.
        models: what must be the same afterwards; name -> model.
        how: "signal" for a real SIGINT at each line, "raise" for an exception there, which nothing can put off, "twice"
            for a second SIGINT soon after the first, "calls" for a SIGINT at the beginning of each function that a line
            calls (and of what contexts call: their `__enter__` and `__exit__` are not ours).
        visits: how often each line is interrupted.
        chosen: which of these moments to take, by their number and place.

    Returns:
        (file and line, visit) -> what is left; an empty list is how it should be.
    """
    _ELSEWHERE.update(threading.enumerate())
    before, tracing, start, tracer = seen(models), _Tracing(how, visits, chosen), HeldPass._run, sys.gettrace()
    gc.collect()
    gc.freeze()  # forks need not copy what is there already
    left = None
    try:
        # A stack of its own has a trace of its own.
        HeldPass._run = lambda held: (tracing.begin(), start(held))[1]
        tracing.begin()
        work()
        tracing.end(None)
        left = [] if tracing.ignored else ["it was not interrupted"]
    except KeyboardInterrupt:
        tracing.end(None)
        left = compared(before, seen(models), "") if tracing.answer else None
    except BaseException as error:
        tracing.end(None)
        if not tracing.answer:
            raise
        left = [f"not a KeyboardInterrupt, but {type(error).__name__}: {error}", *compared(before, seen(models), "")]
    finally:
        tracing.end(tracer)
        HeldPass._run = start
    if tracing.answer:
        gc.collect()  # nothing may come to itself later
        more = compared(before, seen(models), "")
        left += [f"later: {each}" for each in more if each not in left]
        with os.fdopen(tracing.answer, "w") as pipe:
            pipe.write(json.dumps(left))
        os._exit(0)
    return tracing.found


class _Tracing:
    """Forks at lines; `answer` is where a child writes to, and `found` what the children of the parent wrote."""

    def __init__(self, how, visits, chosen):
        self.how, self.visits, self.chosen = how, visits, chosen
        self.counts, self.number = Counter(), 0
        self.answer, self.found = None, {}
        self.ignored = False  # Python itself lets exceptions in finalizers and callbacks of weak references go nowhere

    def begin(self):
        if self.answer:  # it was interrupted, and only tidies up
            return
        if self.how == "calls":
            sys.setprofile(self.calls)
        else:
            sys.settrace(self.modules)

    def end(self, tracer):
        sys.setprofile(None)
        sys.settrace(tracer)

    def modules(self, frame, event, argument):
        return self.lines if frame.f_code.co_filename.startswith(PACKAGE) else None

    def lines(self, frame, event, argument):
        if event == "line" and self.is_child((frame.f_code.co_filename, frame.f_lineno)):
            self.interrupt(frame)
            return None
        return self.lines

    def calls(self, frame, event, argument):
        caller = frame.f_back
        if event != "call" or caller is None:
            return
        if caller.f_code.co_filename.endswith("contextlib.py") and caller.f_back is not None:
            caller = caller.f_back
        place = caller.f_code.co_filename, caller.f_lineno
        called = frame.f_code.co_filename, frame.f_code.co_firstlineno
        if place[0].startswith(PACKAGE) and self.is_child(place, called):
            self.interrupt(frame)

    def interrupt(self, frame):
        self.end(None)
        sys.unraisablehook = self.ignore
        if self.how == "raise":
            raise KeyboardInterrupt
        if self.how == "twice":
            left = random.Random(frame.f_lineno).randrange(1, 60)

            def again(frame, event, argument):
                nonlocal left
                left -= 1
                if not left:
                    sys.setprofile(None)
                    if any(each.startswith(PACKAGE) for each in files_behind(frame)):  # the work has not ended yet
                        signal.raise_signal(signal.SIGINT)

            sys.setprofile(again)
        signal.raise_signal(signal.SIGINT)

    def ignore(self, what):
        self.ignored |= what.exc_type is KeyboardInterrupt

    def is_child(self, *place):
        if self.counts[place] == self.visits:
            return False
        self.counts[place] += 1
        self.number += 1
        name = " -> ".join(f"{file.removeprefix(PACKAGE)}:{line}" for file, line in place)
        if not self.chosen(self.number, name):
            return False
        stream = random.getstate()  # Python seeds it anew in each fork
        read, write = os.pipe()
        if not os.fork():
            random.setstate(stream)
            os.close(read)
            self.answer = write
            return True
        os.close(write)
        with os.fdopen(read) as answer:
            self.found[name, self.counts[place]] = json.loads(answer.read() or '["the child died"]')
        os.wait()
        return False


def files_behind(frame):
    while frame is not None:
        yield frame.f_code.co_filename
        frame = frame.f_back


def compared(before, after, path):
    """Where two trees of dicts differ."""
    if isinstance(before, dict) and isinstance(after, dict):
        names = [*before, *(name for name in after if name not in before)]
        return [each for name in names for each in compared(before.get(name), after.get(name), f"{path}/{name}")]
    return [] if before == after else [f"{path}: {before!r:.60} -> {after!r:.60}"]


def seen(things):
    """Everything that can be seen of models, of the streams of loaders, and of the process."""
    process = seen_process()
    if process["modes"] == (0, 0):
        return {**{name: seen_thing(thing) for name, thing in things.items()}, "process": process}
    return {"process": process}  # what tensors hold cannot be told in a mode


def seen_thing(thing):
    if isinstance(thing, torch.nn.Module):
        return seen_model(thing)
    return hash(thing.generator.get_state().numpy().tobytes())


def seen_model(model):
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    configs = {
        f"{path}.{name}": value
        for path, module in model.named_modules()
        for name in ("config", "generation_config")
        if hasattr(value := vars(module).get(name), "to_dict")
    }
    return {
        "modules": {path: seen_module(module) for path, module in model.named_modules()},
        "tensors": {name: seen_tensor(value) for name, value in tensors.items()},
        "configs": {name: {key: repr(value) for key, value in vars(each).items()} for name, each in configs.items()},
    }


def seen_module(module):
    return {"class": type(module).__qualname__} | {
        name: {str(key): id(each) for key, each in value.items()}
        if isinstance(value, dict)
        else (id(value), repr(value) if isinstance(value, (bool, int, float, str, list, tuple, set)) else "")
        for name, value in vars(module).items()
    }


def seen_tensor(value):
    values = None if value.is_meta else value.detach().nan_to_num(nan=7.25).double().numpy().tobytes()
    return id(value), value.requires_grad, value.grad is None, hash(values)


def seen_process():
    sdp = torch.backends.cuda
    return {
        "random": hash((torch.get_rng_state().numpy().tobytes(), random.getstate(), repr(np.random.get_state()))),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": (torch.is_autocast_enabled("cpu"), str(torch.get_autocast_dtype("cpu"))),
        "types": str(torch.get_default_dtype()),
        "kernels": (sdp.flash_sdp_enabled(), sdp.mem_efficient_sdp_enabled(), sdp.math_sdp_enabled()),
        "fast path": torch.backends.mha.get_fastpath_enabled(),
        "modes": (len(_get_current_dispatch_mode_stack()), len(_get_current_function_mode_stack())),
        "global hooks": [len(value) for name, value in sorted(vars(global_hooks).items()) if name.endswith("_hooks")],
        "warnings": len(warnings.filters),
        "signals": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
        "threads": sum(each not in _ELSEWHERE for each in threading.enumerate()),
        "logging": logging.get_verbosity(),
        "place": (os.getcwd(), hash(frozenset(os.environ.items()))),
    }
