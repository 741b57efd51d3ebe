"""Watching a model run: record what modules take and return, and replay what a mask cannot change."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@contextmanager
def recorded(model: nn.Module, layers: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Collect what each layer returns during the forward passes inside.

    Args:
        model: the model.
        layers: name -> module path.

    Yields:
        name -> the layer's last output, as it returned it; filled as the model runs.
    """
    outputs: dict[str, Any] = {}
    with ExitStack() as stack:
        for name, path in layers.items():
            hook = model.get_submodule(path).register_forward_hook(_recording_hook(outputs, name))
            stack.callback(hook.remove)
        yield outputs


@dataclass(frozen=True)
class Passage:
    """What went into a module and came out of it.

    Args:
        input: its first argument.
        output: what it returned.
        others: its other arguments by place.
    """

    input: Tensor
    output: Tensor
    others: tuple = ()


class _Seen(dict[str, Passage]):
    """Path -> passage; to ask for a module that did not run is an error that says so."""

    def __missing__(self, path: str) -> Passage:
        raise ValueError(
            f"{path} does not run on the calibration data, though it ran on the sample that groups were proved on: "
            "what runs depends on what is read. Exclude its layer (OptinConfig(exclude=...)), or give other data."
        )


@contextmanager
def observed(
    model: nn.Module, paths: Iterable[str], stop_after: str | None = None, *, apart: bool = False
) -> Iterator[dict[str, Passage]]:
    """Collect inputs and outputs of modules during the forward passes inside.

    Args:
        model: the model, or a part of it that holds the modules.
        paths: module paths.
        stop_after: one of them; when it has run, the rest of the block is skipped.
        apart: whether the pass goes on with copies of the outputs, so that an activation that works in place changes
            neither them nor what they have gradients by.

    Yields:
        path -> its last passage; filled as the model runs.
    """
    seen = _Seen()
    with ExitStack() as stack:
        for path in paths:
            hook = model.get_submodule(path).register_forward_hook(_observing_hook(seen, path, stop_after, apart))
            stack.callback(hook.remove)
        with suppress(_Stop):
            yield seen


@contextmanager
def replayed(model: nn.Module, layers: Mapping[str, str], outputs: Mapping[str, Any]) -> Iterator[None]:
    """Let layers return recorded outputs instead of running: exact, and needs no per-model code.

    Args:
        model: the model.
        layers: name -> module path; of these, the ones named in `outputs` are replayed.
        outputs: name -> what `recorded` collected on the same batch.
    """
    with ExitStack() as stack:
        for name in outputs:
            module = model.get_submodule(layers[name])
            stack.callback(_restore_forward, module, vars(module).get("forward"))
            module.forward = _replaying_forward(outputs[name])
        yield


def _recording_hook(outputs: dict[str, Any], name: str):
    def hook(module: nn.Module, args: tuple, output: Any) -> None:
        outputs[name] = output

    return hook


class _Stop(Exception):
    """Ends a forward pass early."""


def _observing_hook(seen: dict[str, Passage], path: str, stop_after: str | None, apart: bool):
    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor | None:
        seen[path] = Passage(args[0], output, args[1:])
        if path == stop_after:
            raise _Stop
        return output.clone() if apart else None

    return hook


def _restore_forward(module: nn.Module, forward: Any) -> None:
    del module.forward
    if forward is not None:  # Accelerate's hooks live there
        module.forward = forward


def _replaying_forward(output: Any):
    def forward(*args, **kwargs) -> Any:
        return output

    return forward


def find_module(model: nn.Module, path: str) -> nn.Module | None:
    """The module at a path; `None` if it was removed with its units."""
    try:
        return model.get_submodule(path)
    except AttributeError:
        return None
