"""The table of variants: in what forms a model is measured, what each needs, and how far its outputs may be off.

A new variant needs no more than an entry here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from ..models.identity import device_of, dtype_of
from ..running.batch import Batch
from ..running.prepared import copy_of
from ..timing.backends import check_compiler
from .agreement import Tolerance
from .cells import EAGER
from .runners import Runner, loader_of, write_model, write_onnx, write_onnx_int8

WRITTEN, RUN = "written", "run"
COMPILE = "compile"
_RECOMPILES = 64  # of one function, for all shapes and both models


@dataclass(frozen=True)
class Variant:
    """A form that a model is measured in.

    Args:
        name: what users call it.
        words: what it is.
        tolerance: how far its outputs may be from those of eager mode.
        write: writes what it is loaded from into an empty folder, and returns how to load it:
            `(model, folder, batch, threads)`, where the batch is one to export with.
        needs: packages that it takes, beside our own requirements.
        install: how to get them.
        check: raises `ValueError` if it does not run here, or not this model: `(model)`.
        generates: whether it can write text, token by token, with a cache.
        made: when it is made: as it is written (`WRITTEN`) or when it runs first (`RUN`); `None` for a model as it is.
    """

    name: str
    words: str
    tolerance: Tolerance
    write: Callable[[nn.Module, Path, Batch, int], Callable[[], Runner]]
    needs: tuple[str, ...] = ()
    install: str = ""
    check: Callable[[nn.Module], None] = lambda model: None
    generates: bool = False
    made: str | None = None


def variants_named(names: Sequence[str]) -> list[Variant]:
    """Variants by their names, eager mode first, which others are compared with.

    Args:
        names: their names.

    Raises:
        ValueError: an unknown name, or one that is there twice.
        ImportError: names the packages that a variant needs, and says how to install them.
    """
    if isinstance(names, str):
        raise ValueError(f"variants={names!r} must be a list of names, such as ['eager', {names!r}].")
    for name in names:
        if name not in VARIANTS:
            raise ValueError(f"variants={list(names)!r}: {name!r} is none of {', '.join(VARIANTS)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"variants={list(names)!r} holds a name twice: give each once.")
    found = [VARIANTS[name] for name in dict.fromkeys((EAGER, *names))]
    for variant in found:
        if missing := [package for package in variant.needs if find_spec(package) is None]:
            raise ImportError(
                f"the variant {variant.name!r} needs {' and '.join(missing)}, not installed here: {variant.install}, "
                f"or leave {variant.name!r} out."
            )
    return found


@contextmanager
def without_fallback(variants: Sequence[Variant]) -> Iterator[None]:
    """Let `torch.compile` fail where it would give up and run eagerly, without a word, after many shapes and models."""
    if not any(variant.name == COMPILE for variant in variants):
        yield
        return
    import torch._dynamo as dynamo  # slow to import

    with dynamo.config.patch(recompile_limit=_RECOMPILES, fail_on_recompile_limit_hit=True):
        yield


def _write_eager(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], Runner]:
    write_model(model, folder)
    return loader_of(model, folder)


def _write_compiled(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], Runner]:
    write_model(model, folder)
    return loader_of(model, folder, lambda loaded: loaded.compile(dynamic=True))


def _write_bf16(model: nn.Module, folder: Path, batch: Batch, threads: int) -> Callable[[], Runner]:
    cast = copy_of(model).to(torch.bfloat16)
    write_model(cast, folder)
    return loader_of(cast, folder)


def _check_compiler(model: nn.Module) -> None:
    check_compiler("the variant 'compile'", "leave 'compile' out", device_of(model))


def _check_float32(name: str, model: nn.Module) -> None:
    if dtype_of(model) != torch.float32:
        raise ValueError(
            f"the variant {name!r} is made of weights in float32, and these are in {_word(dtype_of(model))}: load the "
            f"models with dtype='float32', or leave {name!r} out."
        )


def _check_onnx(name: str, model: nn.Module) -> None:
    if device_of(model).type != "cpu":
        raise ValueError(
            f"the variant {name!r} runs on the CPU, and the models are on {device_of(model).type!r}: load them there "
            f"(device_map='cpu'), or leave {name!r} out."
        )
    _check_float32(name, model)


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


_ONNX = {
    "needs": ("onnx", "onnxscript", "onnxruntime"),
    "install": "pip install 'optimum-optin[onnx]'",
    "made": WRITTEN,
}

# The same operations in another order differ by rounding in float32, some 1e-6, which layers add up to 1e-4 at most.
_REORDERED = Tolerance(distance=1e-3, agreement=0.99)
# 8 bits of significand are an error of 2^-9 in each number, which layers add up to 2 % at most.
_BF16 = Tolerance(distance=0.1, agreement=0.95)
# Steps of 1/127 of the largest number are an error of some 1 % in each product, which layers add up to some 5 %.
_INT8 = Tolerance(distance=0.2, agreement=0.9)

VARIANTS = {
    each.name: each
    for each in (
        Variant(EAGER, "PyTorch as it is", Tolerance(0.0, 1.0), _write_eager, generates=True),
        Variant(COMPILE, "torch.compile", _REORDERED, _write_compiled, check=_check_compiler, made=RUN),
        Variant(
            "onnx",
            "ONNX Runtime",
            _REORDERED,
            write_onnx,
            check=partial(_check_onnx, "onnx"),
            **_ONNX,
        ),
        Variant(
            "onnx-int8",
            "ONNX Runtime, weights in 8 bits, activations quantized as they come",
            _INT8,
            write_onnx_int8,
            check=partial(_check_onnx, "onnx-int8"),
            **_ONNX,
        ),
        Variant(
            "bf16",
            "weights and activations in bfloat16",
            _BF16,
            _write_bf16,
            check=partial(_check_float32, "bf16"),
            generates=True,
        ),
    )
}
"""Name -> variant."""
