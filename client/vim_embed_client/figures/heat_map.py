"""MKNN of layers against layers as a heat map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.figure import Figure

from vim_embed_client.figures.style import called, origins, shortened, small_print, title
from vim_embed_client.scoring.layers import LayerScores

# Inches.
_WIDTH = 7.6
_LEFT = 1.5
_RIGHT = 1.1
_LABELS = 1.25
_HEIGHTS = (1.2, 6.0)

_NUMBERED = 14  # columns: a value in each cell up to so many
_LABELLED = 30  # names on an axis, at most


def heat_map_figure(scores: LayerScores) -> Figure:
    """A cell for each two layers, the first file's down and the second's across."""
    figure = Figure(figsize=(_WIDTH, 9))
    top, foot = _words(figure, scores)
    across = _WIDTH - _LEFT - _RIGHT
    rows, columns = scores.values.shape
    up = float(np.clip(across * rows / columns, *_HEIGHTS))
    height = top + 0.2 + up + _LABELS + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, scores)
    axes = figure.add_axes(
        (_LEFT / _WIDTH, (foot + _LABELS) / height, across / _WIDTH, up / height)
    )
    low, high = float(scores.values.min()), float(scores.values.max())
    image = axes.imshow(scores.values, aspect="auto", vmin=low, vmax=max(high, low + 1e-9))
    axes.grid(False)
    axes.spines[:].set_visible(False)
    _ticks(axes, scores)
    if columns <= _NUMBERED and rows <= 2 * _NUMBERED:
        _numbers(axes, scores.values, low, high)
    bar_axes = figure.add_axes(
        (1 - (_RIGHT - 0.15) / _WIDTH, (foot + _LABELS) / height, 0.02, up / height)
    )
    bar = figure.colorbar(image, cax=bar_axes)
    bar.set_label("MKNN (share, 0 to 1)")
    bar.outline.set_visible(False)
    return figure


def _words(figure: Figure, scores: LayerScores) -> tuple[float, float]:
    best = np.unravel_index(int(scores.values.argmax()), scores.values.shape)
    pair = f"{scores.first_layers[best[0]]} and {scores.second_layers[best[1]]}"
    files = [scores.first, scores.second]
    top = title(
        figure,
        f"Layers against layers: MKNN up to {scores.values.max():.3f} ({shortened(pair, 60)})",
        f"{called(files)}, {scores.n:,} sources, k = {scores.k}, chance {scores.chance:.3f}",
        random_weights=any(file.random_weights for file in files),
    )
    down, across = (shortened(str(file.path), 60) for file in files)
    about = (
        "MKNN: mean share of cosine k-nearest neighbours that both layers have in common. Down: "
        f"{down}. Across: {across}."
    )
    return top, small_print(figure, [about, *origins(files)])


def _ticks(axes: Any, scores: LayerScores) -> None:
    for axis, names in ((axes.yaxis, scores.first_layers), (axes.xaxis, scores.second_layers)):
        shown = _shown(names)
        axis.set_ticks(shown, [shortened(names[place], 18) for place in shown])
    axes.tick_params(length=0)
    axes.tick_params(axis="x", rotation=90 if len(scores.second_layers) > 6 else 0)


def _shown(names: Sequence[str]) -> list[int]:
    """Places of the names that fit on an axis, evenly spread."""
    step = -(-len(names) // _LABELLED)
    return list(range(0, len(names), step))


def _numbers(axes: Any, values: Any, low: float, high: float) -> None:
    """The value in each cell, in black or white, whichever stands out."""
    colour_map = colormaps[rcParams["image.cmap"]]
    for (row, column), value in np.ndenumerate(values):
        red, green, blue, _ = colour_map((value - low) / max(high - low, 1e-9))
        dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
        axes.text(
            column, row, f"{value:.2f}", ha="center", va="center",
            color="white" if dark else "black", fontsize=8,
        )  # fmt: skip
