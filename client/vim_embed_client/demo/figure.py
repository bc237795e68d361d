"""The demo's figure; matplotlib without a display."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vim_embed_client.demo.flow import Pixels, Result
from vim_embed_client.demo.views import HYPER_SUPRIME_CAM
from vim_embed_client.figures.curve import draw_curve
from vim_embed_client.figures.style import GREY, INK, ORANGE, VERMILLION, styled
from vim_embed_client.scoring.neighbours import Indices, nearest_neighbours

_ROWS, _SHOWN = 6, 5
_BRIGHTEST = 128
_TITLE_LETTERS = 96


@styled()
def demo_figure(result: Result) -> Figure:
    """Sources with their nearest neighbours in both views, beside MKNN against k.

    The title says which weights answered.
    """
    figure = Figure(figsize=(15, 6.9), facecolor="white")
    _title(figure, result)
    _grid(figure, result)
    _curve(figure.add_axes((0.74, 0.1, 0.245, 0.62)), result)
    return figure


def _title(figure: Figure, result: Result) -> None:
    telescope = HYPER_SUPRIME_CAM
    figure.suptitle(
        f"{result.provenance.model}, {_short(result.weights)}",
        x=0.015,
        y=0.97,
        ha="left",
        va="top",
        fontsize=17,
        fontweight="bold",
        color=VERMILLION if result.provenance.random_weights else INK,
    )
    figure.text(
        0.015,
        0.9,
        f"{len(result.space):,} sources of the Hubble eXtreme Deep Field, as Hubble sees them and "
        f"as a ground telescope would (seeing {telescope.fwhm}″, {telescope.pixel}″ pixels, noise)",
        fontsize=11.5,
        va="top",
        color=INK,
    )


def _short(text: str) -> str:
    return text if len(text) <= _TITLE_LETTERS else f"{text[:20]} … {text[22 - _TITLE_LETTERS :]}"


def _grid(figure: Figure, result: Result) -> None:
    k = result.score.k
    lists = nearest_neighbours(result.space, k), nearest_neighbours(result.ground, k)
    shown = _shown_sources(len(result.space))
    layout = dict(top=0.8, bottom=0.075, wspace=0.11, hspace=0.11)
    columns = 1 + min(_SHOWN, k)
    for (left, right), heading, pixels, mine, other in (
        ((0.016, 0.336), "space view", result.views.space, *lists),
        ((0.362, 0.682), "ground view", result.views.ground, *lists[::-1]),
    ):
        grid = figure.add_gridspec(len(shown), columns, left=left, right=right, **layout)
        for row, source in enumerate(shown):
            _row(figure, grid, row, source, pixels, mine, other)
        _headings(figure, left, right, columns, heading)
    figure.text(
        0.015,
        0.05,
        f"Orange frame: also among the source's {k} nearest neighbours in the other view, which "
        "is what MKNN counts.",
        fontsize=10.5,
        va="top",
        color=INK,
    )


def _shown_sources(n: int) -> list[int]:
    """Rows at even steps through the brightest sources, in which there is something to see."""
    last = min(n, _BRIGHTEST) - 1
    return [int(i) for i in np.linspace(0, last, min(_ROWS, n))]


def _row(
    figure: Figure,
    grid: Any,
    row: int,
    source: int,
    pixels: Pixels,
    mine: Indices,
    other: Indices,
) -> None:
    _stamp(figure.add_subplot(grid[row, 0]), pixels[source], INK, 1.0)
    for column, neighbour in enumerate(mine[source, :_SHOWN], start=1):
        shared = neighbour in other[source]
        axes = figure.add_subplot(grid[row, column])
        _stamp(axes, pixels[neighbour], *((ORANGE, 3.5) if shared else (GREY, 0.6)))


def _stamp(axes: Any, pixels: Pixels, colour: str, width: float) -> None:
    axes.imshow(pixels.transpose(1, 2, 0), interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(visible=True, edgecolor=colour, linewidth=width)


def _headings(figure: Figure, left: float, right: float, columns: int, name: str) -> None:
    cell = (right - left) / columns
    for x, text in ((left, "source"), (left + cell, f"nearest neighbours in the {name} →")):
        figure.text(x, 0.815, text, fontsize=11, color=INK, va="bottom")


def _curve(axes: Any, result: Result) -> None:
    draw_curve(axes, result.curve, result.score)
    axes.set_ylabel("share of neighbours in both views", fontsize=11, color=INK)
    axes.set_title(
        f"MKNN at k = {result.score.k}: {result.score.mknn:.3f}  "
        f"(chance {result.score.chance:.3f})",
        loc="left",
        pad=48,
        fontsize=11.5,
        fontweight="bold",
        color=INK,
    )
