"""Embeddings as points on a plane, coloured by a column."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from vim_embed_client.figures.columns import Column
from vim_embed_client.figures.projection import Projection
from vim_embed_client.figures.style import (
    BLUE,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    called,
    origins,
    shortened,
    small_print,
    title,
)
from vim_embed_client.scoring.embedding_files import EmbeddingFile

# A shape for each colour, for those who cannot tell the colours apart.
_CLASSES = (
    (BLUE, "o"), (ORANGE, "^"), (GREEN, "s"), (VERMILLION, "D"),
    (PURPLE, "v"), (SKY, "P"), (INK, "X"),
)  # fmt: skip
_PERCENTILES = (2.0, 98.0)
_MANY = 5000
_LETTERS = 16

# Inches.
_WIDTH = 8.4
_AXES = (5.46, 7.25)  # width beside a legend or colour bar, and alone
_HEIGHTS = (2.4, 5.2)
_LEFT = 0.85
_LABELS = 0.55


def map_figure(
    file: EmbeddingFile, projection: Projection, column: Column | None, label: str
) -> Figure:
    """The map with a legend or colour bar. label: what the colours mean, with its unit.

    Both axes have one scale, so that distances on paper are distances of the projection.
    """
    figure = Figure(figsize=(_WIDTH, 9), facecolor="white")
    words = (file, projection, column, label)
    top, foot = _words(figure, *words)
    across, up = _extent(projection.coordinates, alone=column is None)
    height = top + 0.15 + up + _LABELS + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, *words)
    box = (_LEFT / _WIDTH, (foot + _LABELS) / height, across / _WIDTH, up / height)
    axes = figure.add_axes(box)
    _dress(axes, projection)
    _points(figure, axes, projection.coordinates, column, label)
    return figure


def _extent(xy: NDArray[np.float64], *, alone: bool) -> tuple[float, float]:
    """Inches of the axes: as flat as the points are, within limits."""
    across = _AXES[alone]
    width, height = np.ptp(xy, axis=0)
    flatness = height / width if width else 1.0
    return across, float(np.clip(across * flatness, *_HEIGHTS))


def _words(
    figure: Figure, file: EmbeddingFile, projection: Projection, column: Column | None, label: str
) -> tuple[float, float]:
    method = projection.axes[0].split()[0].replace("PC", "PCA")
    by = f", coloured by {shortened(label, 48)}" if column else ""
    top = title(
        figure, f"{method} map of {len(file):,} sources{by}", called([file]),
        random_weights=file.random_weights,
    )  # fmt: skip
    about = f"Map: {projection.about}."
    if column and column.kind == "continuous":
        about += " Colours end at the 2nd and the 98th percentile."
    return top, small_print(figure, [about, *origins([file])])


def _dress(axes: Any, projection: Projection) -> None:
    axes.set_xlabel(projection.axes[0], fontsize=11, color=INK)
    axes.set_ylabel(projection.axes[1], fontsize=11, color=INK)
    axes.grid(color="#EEEEEE", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(0.04)
    axes.set_aspect("equal", adjustable="datalim")


def _points(
    figure: Figure, axes: Any, xy: NDArray[np.float64], column: Column | None, label: str
) -> None:
    # Points of a large survey are drawn as pixels even in .pdf and .svg.
    many = len(xy) > _MANY
    style = {
        "s": _area(len(xy)), "lw": 0 if many else 0.4, "edgecolor": "white", "rasterized": many
    }  # fmt: skip
    if column is None:
        axes.scatter(*xy.T, color=BLUE, alpha=_alpha(len(xy)), **style)
    elif column.kind == "continuous":
        _continuous(figure, axes, xy, column.values, label, style)
    else:
        _categorical(axes, xy, column.values, label, style)


def _area(n: int) -> float:
    """Of a point, in square points: smaller where there are many."""
    return float(np.clip(9000 / n, 2.0, 30.0))


def _alpha(n: int) -> float:
    return float(np.clip(1500 / n, 0.25, 0.85))


def _continuous(
    figure: Figure, axes: Any, xy: Any, values: Any, label: str, style: dict[str, Any]
) -> None:
    none = np.isnan(values)
    if none.any():
        axes.scatter(
            *xy[none].T, color=GREY, alpha=0.35, label=f"no value ({none.sum():,})", **style
        )
        _legend(axes, "")
    low, high = np.percentile(values[~none], _PERCENTILES)
    drawn = axes.scatter(
        *xy[~none].T, c=values[~none], cmap="viridis", vmin=low, vmax=high, **style
    )
    x0, y0, width, height = axes.get_position().bounds
    bar_axes = figure.add_axes(
        (x0 + width + 0.025, y0, 0.022, height * (0.85 if none.any() else 1))
    )
    bar = figure.colorbar(drawn, cax=bar_axes, extend=_extend(values[~none], low, high))
    bar.set_label(shortened(label, 48), fontsize=11, color=INK)
    bar.ax.tick_params(labelsize=9.5)
    if 1e4 <= max(abs(low), abs(high)) < 1e7:
        bar.formatter = StrMethodFormatter("{x:,.0f}")
    bar.outline.set_visible(False)


def _extend(values: Any, low: float, high: float) -> str:
    below, above = bool((values < low).any()), bool((values > high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (below, above), "neither"
    )


def _categorical(axes: Any, xy: Any, values: Any, label: str, style: dict[str, Any]) -> None:
    counts = Counter(values[values != ""].tolist())
    shown = [name for name, _ in counts.most_common(len(_CLASSES))]
    rest = ~np.isin(values, [*shown, ""])
    groups = [
        (values == name, name if len(name) <= _LETTERS else f"{name[:_LETTERS]}…", *look, 2)
        for name, look in zip(shown, _CLASSES, strict=False)
    ]
    groups.append((rest, f"{len(counts) - len(shown)} others", FAINT, "h", 1))
    groups.append((values == "", "no value", GREY, "o", 1))
    for mask, name, colour, marker, layer in groups:
        if mask.any():
            axes.scatter(
                *xy[mask].T, color=colour, marker=marker, zorder=layer,
                alpha=max(0.5, _alpha(len(xy))) if layer > 1 else 0.4,
                label=f"{name} ({mask.sum():,})", **style,
            )  # fmt: skip
    _legend(axes, label)


def _legend(axes: Any, heading: str) -> None:
    legend = axes.legend(
        title=shortened(heading, 20), loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize=9.5, title_fontsize=10.5, alignment="left", handletextpad=0.3, borderaxespad=0,
    )  # fmt: skip
    for handle in legend.legend_handles:
        handle.set_sizes([36])
