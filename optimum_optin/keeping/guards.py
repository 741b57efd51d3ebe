"""Guards: while a thread has a model in hand, no other one can run it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Guard:
    """Stands where PyTorch looks for a module's compiled call, of which copies and pickles of modules have none.

    Args:
        module: the module.
        thread: the only one that may run it.
        name: what the whole model is called.
        compiled: what stood there; `None` for nothing.
    """

    def __init__(self, module: nn.Module, thread: int, name: str, compiled: Callable | None = None) -> None:
        self._module, self._thread, self._name = module, thread, name
        self._run = compiled or module._call_impl

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        # Backward passes have threads of their own, in which checkpointed modules run again.
        if threading.get_ident() != self._thread and torch._C._current_graph_task_id() == -1:
            raise RuntimeError(
                f"this {self._name} is being pruned or measured by another thread, which masks its units and switches "
                "its modes meanwhile: wait until that is done, or make a copy for this thread before "
                "(copy.deepcopy(model))."
            )
        return self._run(*args, **kwargs)

    def bare(self) -> Guard:
        """The same, for the module as its class runs it."""
        return Guard(self._module, self._thread, self._name)


def guard(model: nn.Module) -> None:
    """Let no other thread run a model or a part of it, in place; what restores the attributes of modules ends it."""
    thread = threading.get_ident()
    if any(isinstance(module, nn.DataParallel) for module in model.modules()):
        return  # it runs copies in threads of its own
    for module in model.modules():
        compiled = vars(module).get("_compiled_call_impl")
        if not isinstance(compiled, Guard) and not isinstance(module, torch.jit.ScriptModule):
            vars(module)["_compiled_call_impl"] = Guard(module, thread, type(model).__name__, compiled)


def unguard(model: nn.Module) -> None:
    """Take guards off a copy, in place, where modules say themselves how they are copied."""
    for module in model.modules():
        if isinstance(vars(module).get("_compiled_call_impl"), Guard):
            del vars(module)["_compiled_call_impl"]
