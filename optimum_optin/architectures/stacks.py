"""The form of a row in the table of architectures: stacks of layers, and what each layer holds.

Paths are relative to the layer (sublayers) or to the base model (layers).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import InitVar, dataclass, field, fields

from .group import HEADS, NEURONS, Producer, Residual


@dataclass(frozen=True)
class Linears:
    """What is sliced when units of a sublayer are removed; paths of modules, parameters and attributes.

    Args:
        consumer: the linear that reads the units.
        producers: the linears that write them.
        core: the attention module, which is replaced when no unit is left; `None` where empty linears will do.
        counters: attributes that are set to what is left: path -> `"units"` or `"features"` (units * width).
        tables: learned tables with an entry per head: path of the parameter -> its dimension of heads; those that a
            model does not have are passed over.
        shared_bias: path of a module, then the name of its argument that carries the position bias of all heads, which
            is one for the whole stack (MPNet); an argument of the layer itself has no path before it.
    """

    consumer: str
    producers: tuple[Producer, ...]
    core: str | None = None
    counters: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    shared_bias: str | None = None


@dataclass(frozen=True)
class Sublayer:
    """One kind of group inside every layer of a stack; made by `heads` and `neurons`.

    Args:
        role: see `Group`.
        width: consumer input columns per unit, or the path of the attribute that holds the number.
        linears: what reads and writes the units.
        residual: see `Group`.
        config_fields: see `Group`.
        otherwise: what a layer has instead in models that lack one of these linears.
    """

    role: str
    width: int | str
    linears: Linears
    residual: Residual
    config_fields: tuple[str, ...] = ()
    otherwise: Sublayer | None = None


@dataclass(frozen=True)
class Stack:
    """A list of like layers.

    Args:
        layers: path of the list below the base model, e.g. `"encoder.layer"`; with `*` for the stage if each has one,
            e.g. `"encoder.layers.*.blocks"`.
        sublayers: what each layer holds, in order of execution.
        name: the stack's name in masks and on disk; distinct for each stack of an architecture.
        pre_norm: not read any more: it is found on the model.
        between: path of the module that ends a stage, e.g. `"encoder.layers.*.downsample"`; a layer without units.
        keys: path of the linear that makes a layer's keys. It allows merging tokens between layers, so give it only if
            nothing in a layer depends on where a token is.
        reads: the model input that the stack's tokens are made of, if the model has several; `None` for the main one.
    """

    layers: str
    sublayers: tuple[Sublayer, ...]
    name: str = "layers"
    pre_norm: InitVar[bool | None] = None
    between: str | None = None
    keys: str | None = None
    reads: str | None = None

    def __post_init__(self, pre_norm: bool | None) -> None:
        if pre_norm is not None:
            _warn_unread("pre_norm", 4)


def heads(core: str, width: str, producers: Iterable[Producer | str], consumer: str, **options) -> Sublayer:
    """Attention heads of the module at `core`; `options` are fields of `Linears`, `Residual` and `Sublayer`."""
    return _sublayer(HEADS, width, producers, consumer, core=core, **options)


def neurons(producers: Iterable[Producer | str], consumer: str, *, width: int | str = 1, **options) -> Sublayer:
    """FFN neurons, or gate/up pairs of a gated MLP; `width` is as in `Sublayer`, `options` as for `heads`."""
    return _sublayer(NEURONS, width, producers, consumer, **options)


def _sublayer(
    role: str,
    width: int | str,
    producers: Iterable[Producer | str],
    consumer: str,
    *,
    config_fields: tuple[str, ...] = (),
    otherwise: Sublayer | None = None,
    **options,
) -> Sublayer:
    linears = tuple(Producer(producer) if isinstance(producer, str) else producer for producer in producers)
    for name in _UNREAD & options.keys():
        del options[name]
        _warn_unread(name, 4)
    beside = {each.name: options.pop(each.name) for each in fields(Residual) if each.name in options}
    return Sublayer(role, width, Linears(consumer, linears, **options), Residual(**beside), config_fields, otherwise)


_UNREAD = {"pre_norm", "stream", "scale", "normed_output"}
"""Options of earlier rows: how a sublayer stands to the residual stream."""


def _warn_unread(name: str, level: int) -> None:
    message = (
        f"{name}= is not read any more: where outputs join the residual stream is found on the model. Leave it out."
    )
    warnings.warn(message, FutureWarning, stacklevel=level)
