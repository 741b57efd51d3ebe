"""What was measured of a model is remembered for other tests' models that equal it in all.

Tracing, proving and counting take a third of the suite's time, and most tests begin with the same tiny model. Models
are equal here if all is that a measurement can see of them: classes, attributes, configurations, weights bit by bit,
and what the measurement was called with. What cannot be compared (hooks, closures, objects) is measured again. Numbers
of MACs are remembered for all tests, the rest for those of a file: each file finds, proves and cuts its models once.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Hashable, Mapping
from fractions import Fraction
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig

from optimum_optin.keeping.guards import Guard
from optimum_optin.models.examples import example_of
from optimum_optin.running import facts

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type, Fraction, torch.dtype, torch.device)
_PLAIN += (BuiltinFunctionType,)
_MEASURING = {"torch", "transformers", "optimum_optin"}
_APART = ("transformers.utils.hub", "transformers.dynamic_module_utils")  # downloads
_TABLES = {"_ARCHITECTURES", "_SCORERS"}  # a model says in its configuration which row is its own
_HARMLESS = {"_commit_hash", "_name_or_path", "name_or_path"}  # where files of a configuration were


class Memory:
    """Lets `measured_once` measure once for all models that are equal, from when it is made to the end of the process.

    Attributes:
        known: what was measured, but for MACs.
        counted: MACs.
        used: whether it is looked up; if not, every model is measured anew, as without this.
    """

    def __init__(self) -> None:
        self.known: dict[Hashable, Any] = {}
        self.counted: dict[Hashable, Any] = {}
        self.used = False
        self._own = facts.measured_once
        for name, module in list(sys.modules.items()):
            if name.startswith("optimum_optin.") and vars(module).get("measured_once") is self._own:
                module.measured_once = self._measured_once

    def told(self, patch: Callable[..., None]) -> Callable[..., None]:
        """A method of pytest's `MonkeyPatch` after which nothing is looked up, if what it patched runs with a model."""

        @functools.wraps(patch)
        def patched(monkeypatch: Any, target: Any, name: Any, *args: Any, **options: Any) -> None:
            self.used &= _is_apart(target, name)
            patch(monkeypatch, target, name, *args, **options)

        return patched

    def _measured_once(self, model: nn.Module, name: Hashable, measure: Callable[[], Any]) -> Any:
        return self._own(model, name, lambda: self._remembered(model, name, measure))

    def _remembered(self, model: nn.Module, name: Hashable, measure: Callable[[], Any]) -> Any:
        try:
            key = (name, measure.__code__, _Seen(model).key(measure)) if self.used else None
        except _Incomparable:
            key = None
        if key is None:
            return measure()
        known = self.counted if name[0] in ("MACs of units", "MACs of modules") else self.known
        if key not in known:
            known[key] = measure()
        return known[key]


def _is_apart(target: Any, name: Any) -> bool:
    """Whether an attribute has no part in measuring: those of other packages, and tables of rows and scorers."""
    if isinstance(target, str):
        place, name = target, target.rpartition(".")[2]
    elif isinstance(target, ModuleType):
        place = target.__name__
    else:
        place = getattr(target, "__module__", None) or type(target).__module__
    return place.partition(".")[0] not in _MEASURING or place.startswith(_APART) or name in _TABLES


class _Incomparable(Exception):
    """Something that two models may have in different ways."""


def _is_plain_guard(value: Any, module: nn.Module) -> bool:
    """Whether what stands where PyTorch looks for a module's compiled call runs the module as its class does."""
    return value is None or (isinstance(value, Guard) and value._run == module._call_impl)


class _Seen:
    """Makes keys of what a measurement can see of a model.

    Args:
        model: the model.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.numbers: dict[int, int] = {id(module): number for number, module in enumerate(model.modules())}

    def key(self, measure: Callable[[], Any]) -> Hashable:
        """A key of the model, its example, and what a measurement was called with."""
        cells = [cell.cell_contents for cell in measure.__closure__ or ()]
        modules = [self._module(module) for module in self.model.modules()]
        process = torch.get_default_dtype(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")
        return (*process, *modules, self._value(example_of(self.model)), *map(self._value, cells))

    def _module(self, module: nn.Module) -> Hashable:
        values = []
        for name, value in vars(module).items():
            if "hooks" in name and isinstance(value, dict):
                if value:
                    raise _Incomparable
            elif name != "_compiled_call_impl" or not _is_plain_guard(value, module):
                values.append((name, self._value(value)))
        return type(module), *values

    def _value(self, value: Any) -> Hashable:
        if id(value) in self.numbers:
            return "seen", self.numbers[id(value)]
        if isinstance(value, _PLAIN) or (isinstance(value, FunctionType) and not value.__closure__):
            return type(value), value
        if type(value) in (Tensor, nn.Parameter):
            return self._tensor(value)
        return type(value), self._inside(value)

    def _inside(self, value: Any) -> Hashable:
        if isinstance(value, Mapping):
            return tuple((self._value(name), self._value(each)) for name, each in value.items())
        if isinstance(value, (list, tuple)):
            return tuple(map(self._value, value))
        if isinstance(value, (set, frozenset)):
            return frozenset(map(self._value, value))
        is_data = dataclasses.is_dataclass(value) and hasattr(value, "__dict__")
        if is_data or isinstance(value, (PreTrainedConfig, GenerationConfig)):
            self.numbers[id(value)] = len(self.numbers)
            return tuple((name, self._value(each)) for name, each in vars(value).items() if name not in _HARMLESS)
        raise _Incomparable

    def _tensor(self, tensor: Tensor) -> Hashable:
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
            raise _Incomparable
        self.numbers[id(tensor)] = len(self.numbers)
        held = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy()
        values = hashlib.blake2b(held, digest_size=16).digest()
        return tensor.dtype, tensor.shape, tensor.stride(), tensor.requires_grad, values, self._value(vars(tensor))
