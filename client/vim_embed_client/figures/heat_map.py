"""MKNN of layers against layers as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.figure import Figure

from vim_embed_client.figures.style import (
    called,
    origins,
    points,
    shortened,
    small_print,
    text_inches,
    title,
    told_apart,
)
from vim_embed_client.scoring.layers import LayerScores

# Inches.
_WIDTH = 7.6
_RIGHT = 1.1
_BEFORE = 0.3  # of the labels on the left
_PAD = 0.3  # between labels and small print
_HEIGHTS = (1.6, 6.0)

_ITSELF = "#D9D9D9"
_LETTERS = 24
_LEVEL_LETTERS = 12  # columns' labels are level where all are so short and few
_LEVEL = 6
_NUMBERED = 14  # columns: a value in each cell up to so many
_LABELLED = 30  # names on an axis, at most


@dataclass(frozen=True, kw_only=True)
class _Labels:
    """Names of the layers, of which `shown` are written; inches: of the longest."""

    names: Sequence[str]
    shown: Sequence[int]
    inches: float

    @classmethod
    def of(cls, layers: Sequence[str], axis: str) -> _Labels:
        names = told_apart(layers, _LETTERS)
        size = points(f"{axis}tick.labelsize")
        return cls(
            names=names,
            shown=range(0, len(names), -(-len(names) // _LABELLED)),
            inches=max(text_inches(name, size) for name in names),
        )

    @property
    def level(self) -> bool:
        """Whether they fit beside each other."""
        return len(self.names) <= _LEVEL and max(map(len, self.names)) <= _LEVEL_LETTERS


def heat_map_figure(scores: LayerScores) -> Figure:
    """A cell for each two layers, the first file's down and the second's across.

    A layer with itself is grey, so that the colours are those of different layers.
    """
    figure = Figure(figsize=(_WIDTH, 9))
    top, foot = _words(figure, scores)
    down, across = _Labels.of(scores.first_layers, "y"), _Labels.of(scores.second_layers, "x")
    left = _BEFORE + down.inches
    below = _PAD + (0.25 if across.level else across.inches + 0.1)
    wide = _WIDTH - left - _RIGHT
    rows, columns = scores.values.shape
    up = float(np.clip(wide * rows / columns, *_HEIGHTS))
    height = top + 0.2 + up + below + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, scores)
    axes = figure.add_axes((left / _WIDTH, (foot + below) / height, wide / _WIDTH, up / height))
    shown = scores.values[scores.others]
    low, high = float(shown.min()), float(shown.max())
    cells = np.ma.masked_array(scores.values, ~scores.others)
    colour_map = colormaps[rcParams["image.cmap"]].with_extremes(bad=_ITSELF)
    image = axes.imshow(cells, colour_map, aspect="auto", vmin=low, vmax=max(high, low + 1e-9))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    for axis, labels in ((axes.yaxis, down), (axes.xaxis, across)):
        axis.set_ticks(labels.shown, [labels.names[place] for place in labels.shown])
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=0 if across.level else 90)
    if columns <= _NUMBERED and rows <= 2 * _NUMBERED:
        _numbers(axes, cells, low, high)
    bar_axes = figure.add_axes(
        (1 - (_RIGHT - 0.15) / _WIDTH, (foot + below) / height, 0.02, up / height)
    )
    bar = figure.colorbar(image, cax=bar_axes)
    bar.set_label("MKNN (share, 0 to 1)" if up > 2 else "MKNN (share)")
    bar.outline.set_visible(False)
    return figure


def _words(figure: Figure, scores: LayerScores) -> tuple[float, float]:
    compared = np.where(scores.others, scores.values, -1.0)
    best = np.unravel_index(int(compared.argmax()), compared.shape)
    pair = (scores.first_layers[best[0]], scores.second_layers[best[1]])
    files = [scores.first, scores.second]
    top = title(
        figure,
        f"Layers against layers: MKNN up to {compared.max():.3f} "
        f"({' and '.join(shortened(name, 40) for name in pair)})",
        f"{called(files)}, {scores.n:,} sources, k = {scores.k}, chance {scores.chance:.3f}",
        random_weights=any(file.random_weights for file in files),
    )
    down, across = (shortened(str(file.path), 60) for file in files)
    about = (
        "MKNN: mean share of cosine k-nearest neighbours that both layers have in common. Down: "
        f"{down}. Across: {across}."
    )
    return top, small_print(figure, [about, *origins(files)])


def _numbers(axes: Any, cells: Any, low: float, high: float) -> None:
    """The value in each cell, in black or white, whichever stands out."""
    colour_map = colormaps[rcParams["image.cmap"]]
    for (row, column), value in np.ndenumerate(cells.data):
        red, green, blue, _ = colour_map((value - low) / max(high - low, 1e-9))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 and not cells.mask[row, column]
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center",
            color="white" if dark else "black", fontsize=8,
        )  # fmt: skip
