"""The demo's figure, and MKNN against k alone; matplotlib without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from vim_embed_client.demo.flow import Pixels, Result
from vim_embed_client.demo.views import HYPER_SUPRIME_CAM
from vim_embed_client.score import Curve, Neighbours, Score, nearest_neighbours

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _VERMILLION, _GREY = "#0072B2", "#E69F00", "#D55E00", "#8A8A8A"
_INK = "#222222"
_ROWS, _SHOWN = 6, 5
_BRIGHTEST = 128
_DPI = 160
_TITLE_LETTERS = 96


def demo_figure(result: Result) -> Figure:
    """Sources with their nearest neighbours in both views, beside MKNN against k.

    The title says which weights answered.
    """
    figure = Figure(figsize=(15, 6.9), facecolor="white")
    _title(figure, result)
    _grid(figure, result)
    axes = figure.add_axes((0.74, 0.1, 0.245, 0.6))
    _curve(axes, result.curve, result.score)
    return figure


def curve_figure(curve: Curve, score: Score, title: str) -> Figure:
    """MKNN against k with the chance level, under a title."""
    figure = Figure(figsize=(6.4, 4.8), facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    _curve(axes, curve, score)
    figure.suptitle(title, x=0.02, ha="left", fontsize=11, color=_INK)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a file of the path's format."""
    figure.savefig(path, dpi=_DPI)


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
        color=_VERMILLION if result.provenance.random_weights else _INK,
    )
    figure.text(
        0.015,
        0.9,
        f"{len(result.space):,} sources of the Hubble eXtreme Deep Field, as Hubble sees them and "
        f"as a ground telescope would (seeing {telescope.fwhm}″, {telescope.pixel}″ pixels, noise)",
        fontsize=11.5,
        va="top",
        color=_INK,
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
        color=_INK,
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
    mine: Neighbours,
    other: Neighbours,
) -> None:
    _stamp(figure.add_subplot(grid[row, 0]), pixels[source], _INK, 1.0)
    for column, neighbour in enumerate(mine[source, :_SHOWN], start=1):
        shared = neighbour in other[source]
        axes = figure.add_subplot(grid[row, column])
        _stamp(axes, pixels[neighbour], *((_ORANGE, 3.5) if shared else (_GREY, 0.6)))


def _stamp(axes: Any, pixels: Pixels, colour: str, width: float) -> None:
    axes.imshow(pixels.transpose(1, 2, 0), interpolation="antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(edgecolor=colour, linewidth=width)


def _headings(figure: Figure, left: float, right: float, columns: int, name: str) -> None:
    cell = (right - left) / columns
    for x, text in ((left, "source"), (left + cell, f"nearest neighbours in the {name} →")):
        figure.text(x, 0.815, text, fontsize=11, color=_INK, va="bottom")


def _curve(axes: Any, curve: Curve, score: Score) -> None:
    axes.fill_between(
        curve.ks, curve.low, curve.high, color=_GREY, alpha=0.3, lw=0, label="pairs permuted, 95 %"
    )
    axes.plot(curve.ks, curve.chance, "--", color=_GREY, lw=1.6, label="chance, k / (n − 1)")
    axes.plot(curve.ks, curve.mknn, "-", color=_BLUE, lw=2.2, label="MKNN")
    axes.errorbar(
        score.k,
        score.mknn,
        yerr=[[score.mknn - score.low], [score.high - score.mknn]],
        fmt="o",
        ms=8,
        color=_BLUE,
        capsize=4,
    )
    axes.set_title(
        f"MKNN at k = {score.k}: {score.mknn:.3f}  (chance {score.chance:.3f})",
        loc="left",
        pad=62,
        fontsize=11.5,
        fontweight="bold",
        color=_INK,
    )
    _dress(axes, int(curve.ks[-1]))


def _dress(axes: Any, largest: int) -> None:
    ticks = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= largest]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(k) for k in ticks])
    axes.set_ylim(0, 1)
    axes.set_xlabel("neighbours k", fontsize=11.5, color=_INK)
    axes.set_ylabel("share of neighbours in both views", fontsize=11.5, color=_INK)
    axes.grid(color="#E6E6E6", lw=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(
        loc="lower left", bbox_to_anchor=(-0.02, 1.0), frameon=False, fontsize=10.5, reverse=True
    )
