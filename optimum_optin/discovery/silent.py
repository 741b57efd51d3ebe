"""Weights of which tracing says nothing: in no group, nor left out with a reason; they are named all the same."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from ..tracing.found import Trace

_UNREAD = "no operation reads it for this sample: give one for which it runs, if its units are to go"
_UNTOLD = (
    "which of its channels belong together cannot be told: behind it all of them change at once, as behind a "
    "normalisation over channels"
)
_NO_UNITS = (nn.Embedding, nn.EmbeddingBag)  # their rows are words and places


def silent_weights(model: nn.Module, traced: Trace, layers: Mapping[str, str]) -> dict[str, str]:
    """What would be left whole without a word: module or tensor -> reason.

    Outside of layers, only what no operation reads is named: embeddings and the linears at both ends of a model have no
    units but those of the residual stream.

    Args:
        model: the model.
        traced: its trace.
        layers: its layers, name -> module path.
    """
    owned = {part.tensor for found in traced.groups for part in (*found.writes, *found.reads, *found.shared)}
    named = {name.rpartition("[")[0] or name for each in traced.left_out for name in each.tensors}
    weights = [name for name, each in model.named_parameters() if each.dim() > 1 and name not in owned | named]
    unread = set(traced.unread)
    found = dict.fromkeys(_outermost(model, [name for name in weights if name in unread], unread), _UNREAD)
    for name in weights:
        inside = any(name.startswith(f"{path}.") for path in layers.values())
        if name not in unread and inside and not isinstance(model.get_submodule(name.rpartition(".")[0]), _NO_UNITS):
            found[name] = _UNTOLD
    return found


def _outermost(model: nn.Module, names: Iterable[str], unread: set[str]) -> list[str]:
    """Paths of the largest modules around these tensors of which no parameter is read."""
    paths = []
    for name in names:
        path, around = name, name.rpartition(".")[0]
        while around and {f"{around}.{each}" for each, _ in model.get_submodule(around).named_parameters()} <= unread:
            path, around = around, around.rpartition(".")[0]
        paths.append(path)
    return list(dict.fromkeys(paths))
