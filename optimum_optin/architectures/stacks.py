"""The form of a row in the table of architectures: stacks of layers, and what each layer holds.

Paths are relative to the layer (sublayers) or to the base model (layers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from .group import HEADS, NEURONS, Producer


@dataclass(frozen=True)
class Sublayer:
    """One kind of group inside every layer of a stack; made by `heads` and `neurons`.

    Args:
        role: `"heads"` or `"neurons"`.
        consumer: path of the linear that reads the units.
        producers: the linears that write them.
        width: consumer input columns per unit, or the path of the attribute that holds the number.
        core: path of the attention module, replaced when all its heads go.
        counters: attributes to keep true, path -> `"units"` or `"features"` (units * width).
        tables: see `Group`; those that a model does not have are passed over.
        shared_bias: see `Group`; an argument of the layer itself has no path before its name.
        windowed: see `Group`.
        stream: see `Group`.
        scale: see `Group`.
        normed_output: see `Group`.
        config_fields: see `Group`.
        otherwise: what a layer has instead in models that lack one of these linears.
    """

    role: str
    consumer: str
    producers: tuple[Producer, ...]
    width: int | str = 1
    core: str | None = None
    counters: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, int] = field(default_factory=dict)
    shared_bias: str | None = None
    windowed: bool = False
    stream: str | None = None
    scale: str | None = None
    normed_output: bool = False
    config_fields: tuple[str, ...] = ()
    otherwise: Sublayer | None = None


@dataclass(frozen=True)
class Stack:
    """A list of like layers.

    Args:
        layers: path of the list below the base model, e.g. `"encoder.layer"`; of a list for each stage, e.g.
            `"encoder.layers.*.blocks"`.
        sublayers: what each layer holds, in order of execution.
        name: the stack's name in masks and on disk; distinct for each stack of an architecture.
        pre_norm: whether layers normalise the input of a sublayer, rather than its sum with the residual.
        between: path of what ends a stage, e.g. `"encoder.layers.*.downsample"`; a layer without units.
        keys: path of the linear that makes the keys in each layer, where tokens may be merged between layers: nothing
            in a layer may depend on where a token is.
        reads: name of the model's input that its tokens are made of, in a model of several; `None` for the main input.
    """

    layers: str
    sublayers: tuple[Sublayer, ...]
    name: str = "layers"
    pre_norm: bool = False
    between: str | None = None
    keys: str | None = None
    reads: str | None = None


def heads(core: str, width: str, producers: Iterable[Producer | str], consumer: str, **options) -> Sublayer:
    """Attention heads of the module at `core`; see `Sublayer`."""
    return Sublayer(HEADS, consumer, _producers(producers), width, core, **options)


def neurons(producers: Iterable[Producer | str], consumer: str, **options) -> Sublayer:
    """FFN neurons; for a gated MLP a neuron is the gate/up pair. See `Sublayer`."""
    return Sublayer(NEURONS, consumer, _producers(producers), **options)


def _producers(producers: Iterable[Producer | str]) -> tuple[Producer, ...]:
    return tuple(Producer(producer) if isinstance(producer, str) else producer for producer in producers)
