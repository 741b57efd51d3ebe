"""The picture of a sweep, by matplotlib: quality against time, MACs and size, and what each layer keeps."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Kept = Mapping[str, Mapping[str, Mapping[str, int]]]
"""Layer -> role -> `{"kept": ..., "units": ...}`."""

_WIDTH, _HEIGHT = 4.2, 3.4  # inches of a panel
_ROW = 0.16  # inches of a layer, where there are many
_NAMED = 40  # layers that still have room for their names
_DPI = 110
_LINE, _DENSE = "#2a6f97", "#c1121f"


class NotInstalledError(ImportError):
    """matplotlib is not installed."""


@dataclass(frozen=True)
class Panel:
    """What the quality of models is drawn against.

    Args:
        title: what it is, with its unit.
        sizes: of the dense model, and of each pruned one.
    """

    title: str
    sizes: Sequence[float]


@dataclass(frozen=True)
class Picture:
    """What is drawn.

    Args:
        metric: the metric's name.
        values: of the dense model and of each pruned one: the value, and its standard error if that is known.
        panels: what it is drawn against.
        names: of the pruned models.
        kept: what each layer of each of them keeps.
        dense: what each layer of the dense model has.
    """

    metric: str
    values: Sequence[tuple[float, float | None]]
    panels: Sequence[Panel]
    names: Sequence[str]
    kept: Sequence[Kept]
    dense: Kept


def drawn(picture: Picture) -> Any:
    """The picture as a `matplotlib.figure.Figure`; no window is opened, and no global state is changed.

    Raises:
        NotInstalledError: says how to install matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise NotInstalledError(
            f"the picture of a sweep is drawn by matplotlib, which is not installed here ({error}): pip install "
            "'optimum-optin[plots]', or pip install matplotlib. The figures are all in optin_sweep.json."
        ) from error
    roles = list(dict.fromkeys(role for layers in picture.dense.values() for role in layers))
    layers = max((_layers_of(picture.dense, role) for role in roles), key=len, default=[])
    columns = max(len(picture.panels), len(roles), 1)
    below = max(_HEIGHT, _ROW * len(layers))
    figure = Figure(figsize=(_WIDTH * columns, _HEIGHT + below), layout="constrained")
    parts = figure.subfigures(2, 1, height_ratios=[_HEIGHT, below])
    _draw_quality(parts[0].subplots(1, len(picture.panels), sharey=True, squeeze=False)[0], picture)
    if roles:
        _draw_layers(parts[1], parts[1].subplots(1, len(roles), squeeze=False)[0], picture, roles)
    return figure


def png(picture: Picture) -> bytes:
    """The picture as the content of a PNG file; see `drawn`."""
    content = io.BytesIO()
    drawn(picture).savefig(content, format="png", dpi=_DPI)
    return content.getvalue()


def _draw_quality(axes: Sequence[Any], picture: Picture) -> None:
    values = [value for value, _ in picture.values]
    errors = [error or 0.0 for _, error in picture.values]
    for axis, panel in zip(axes, picture.panels, strict=True):
        order = sorted(range(1, len(values)), key=panel.sizes.__getitem__)
        ordered = [[each[place] for place in order] for each in (panel.sizes, values, errors)]
        axis.errorbar(ordered[0], ordered[1], yerr=ordered[2], fmt="o-", color=_LINE, capsize=2, label="pruned")
        axis.errorbar(panel.sizes[:1], values[:1], yerr=errors[:1], fmt="*", color=_DENSE, markersize=13, label="dense")
        axis.axhline(values[0], color=_DENSE, linewidth=0.8, linestyle=":")
        axis.set_xlabel(panel.title)
        axis.set_xlim(left=0)
        axis.locator_params(axis="x", nbins=5)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel(picture.metric)
    axes[0].legend(loc="best")


def _draw_layers(part: Any, axes: Sequence[Any], picture: Picture, roles: Sequence[str]) -> None:
    """For each role, the share of its units that each layer of each model keeps."""
    for axis, role in zip(axes, roles, strict=True):
        layers = _layers_of(picture.dense, role)
        shares = [[_share(kept, layer, role) for kept in picture.kept] for layer in layers]
        image = axis.imshow(shares, vmin=0, vmax=1, cmap="viridis", aspect="auto", interpolation="nearest")
        axis.set_title(f"{role} kept")
        axis.set_xticks(range(len(picture.names)), picture.names, rotation=45, ha="right", fontsize=8)
        if len(layers) <= _NAMED:
            axis.set_yticks(range(len(layers)), layers, fontsize=8)
        else:
            axis.set_ylabel("layer")
    part.colorbar(image, ax=list(axes), label="share of units")


def _layers_of(kept: Kept, role: str) -> list[str]:
    return [layer for layer, roles in kept.items() if role in roles]


def _share(kept: Kept, layer: str, role: str) -> float:
    counts = kept.get(layer, {}).get(role)
    return counts["kept"] / max(counts["units"], 1) if counts else 0.0
