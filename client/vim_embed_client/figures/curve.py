"""MKNN against k, with its interval and the chance band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from vim_embed_client.figures.style import (
    GREY,
    called,
    origins,
    small_print,
    title,
)
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.mknn import Score

# Inches.
_WIDTH = 7.2
_LEFT = 0.75
_AXES = 3.4
_LEGEND = 0.6
_LABELS = 0.6

_TICKS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


def curve_figure(curve: Sequence[Score], headline: Score, files: Sequence[EmbeddingFile]) -> Figure:
    """MKNN of two files at each k of `curve`, the score that counts marked."""
    figure = Figure(figsize=(_WIDTH, 9))
    top, foot = _words(figure, headline, files)
    height = top + _LEGEND + _AXES + _LABELS + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, headline, files)
    box = (_LEFT / _WIDTH, (foot + _LABELS) / height, 1 - (_LEFT + 0.2) / _WIDTH, _AXES / height)
    axes = figure.add_axes(box)
    draw_curve(axes, curve, headline)
    axes.set_ylabel("MKNN (share, 0 to 1)")
    return figure


def _words(figure: Figure, headline: Score, files: Sequence[EmbeddingFile]) -> tuple[float, float]:
    """Draw title and small print; the inches that they take."""
    top = title(
        figure,
        f"MKNN {headline.mknn:.3f} at k = {headline.k} (chance {headline.chance:.3f})",
        f"{called(files)}, {headline.n:,} sources",
        random_weights=any(file.random_weights for file in files),
    )
    about = (
        "MKNN: mean share of cosine k-nearest neighbours that both embeddings have in common. "
        f"Interval: delete-one jackknife. Permuted: {headline.permutations} random pairings."
    )
    return top, small_print(figure, [about, *origins(files)])


def draw_curve(axes: Any, curve: Sequence[Score], headline: Score) -> None:
    """Draw the curve, its interval, the chance band and `headline`, with a legend above."""
    ks = [score.k for score in curve]
    axes.fill_between(
        ks, [s.permuted_low for s in curve], [s.permuted_high for s in curve],
        color=GREY, alpha=0.35, lw=0, label="pairs permuted, 95 %",
    )  # fmt: skip
    axes.plot(ks, [s.chance for s in curve], "--", color=GREY, lw=1.6, label="chance, k / (n − 1)")
    if any(s.has_interval for s in curve):
        axes.fill_between(
            ks, [s.low for s in curve], [s.high for s in curve],
            color="C0", alpha=0.2, lw=0, label="95 % interval",
        )  # fmt: skip
    axes.plot(ks, [s.mknn for s in curve], "-", color="C0", clip_on=False, label="MKNN")
    axes.plot(headline.k, headline.mknn, "o", ms=8, color="C0", clip_on=False)
    _dress(axes, ks)


def _dress(axes: Any, ks: Sequence[int]) -> None:
    ticks = [k for k in _TICKS if ks[0] <= k <= ks[-1]]
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(ticks or ks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{k:,}" for k in ticks or ks])
    axes.set_ylim(0, 1)
    axes.set_xlabel("neighbours k")
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2, reverse=True)
