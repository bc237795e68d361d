"""Score against the size of a model, with intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from vim_embed_client.figures.style import GREY, colours, origins, small_print, title
from vim_embed_client.scoring.study import StudyScore

# Inches.
_WIDTH = 7.2
_LEFT = 0.85
_AXES = 3.2
_LEGEND = 0.3
_LABELS = 0.75

_MARKERS = "o^sDvPX"
_APART = 0.012  # of the decade, between the points of two surveys' pairs


def sizes_figure(scores: Sequence[StudyScore], sizes: Mapping[str, float]) -> Figure:
    """A panel for each metric; a line for each two surveys. sizes: millions of parameters."""
    metrics = list(dict.fromkeys(each.score.metric for each in scores))
    figure = Figure(figsize=(_WIDTH, 9))
    top, foot = _words(figure, scores)
    panel = _AXES + _LABELS
    height = top + _LEGEND * _legend_rows(scores) + len(metrics) * panel + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, scores)
    for place, metric in enumerate(metrics):
        bottom = foot + _LABELS + (len(metrics) - 1 - place) * panel
        axes = figure.add_axes(
            (_LEFT / _WIDTH, bottom / height, 1 - (_LEFT + 0.25) / _WIDTH, _AXES / height)
        )
        _draw(axes, [each for each in scores if each.score.metric == metric], sizes)
        if not place:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2)
    return figure


def _legend_rows(scores: Sequence[StudyScore]) -> int:
    pairs = len({each.surveys for each in scores})
    return (pairs + 2) // 2


def _words(figure: Figure, scores: Sequence[StudyScore]) -> tuple[float, float]:
    files = list({file.label: file for each in scores for file in each.files}.values())
    counts = sorted({each.score.n for each in scores})
    n = f"{counts[0]:,}" + (f" to {counts[-1]:,}" if len(counts) > 1 else "")
    top = title(
        figure,
        "Agreement of two surveys against the size of the model",
        f"{len({each.model for each in scores})} models, {n} sources",
        random_weights=any(file.random_weights for file in files),
    )
    about = (
        "Bars: 95 % intervals, jackknife over twentieths of the sources. Dashed: the value that "
        "5 % of random pairings exceed."
    )
    return top, small_print(figure, [about, *origins(files)])


def _draw(axes: Any, scores: Sequence[StudyScore], sizes: Mapping[str, float]) -> None:
    palette = colours()
    pairs = list(dict.fromkeys(each.surveys for each in scores))
    for place, surveys in enumerate(pairs):
        mine = sorted(
            (each for each in scores if each.surveys == surveys), key=lambda s: sizes[s.model]
        )
        shift = 10 ** (_APART * (place - (len(pairs) - 1) / 2))
        across = [sizes[each.model] * shift for each in mine]
        values = [each.score.value for each in mine]
        bars = [
            [max(0.0, v - each.score.low) for v, each in zip(values, mine, strict=True)],
            [max(0.0, each.score.high - v) for v, each in zip(values, mine, strict=True)],
        ]
        axes.errorbar(
            across, values, yerr=bars, color=palette[place % len(palette)], capsize=3,
            marker=_MARKERS[place % len(_MARKERS)], label=" and ".join(surveys),
        )  # fmt: skip
    smallest, largest = min(sizes[e.model] for e in scores), max(sizes[e.model] for e in scores)
    threshold = max(each.score.threshold for each in scores)
    axes.axhline(threshold, ls="--", lw=1.4, color=GREY, label="unrelated, 5 %")
    axes.set_xscale("log")
    axes.set_xlim(smallest / 1.25, largest * 1.25)
    at = sorted({sizes[each.model] for each in scores})
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_minor_locator(NullLocator())
    names = {sizes[each.model]: each.model for each in scores}
    axes.set_xticklabels([f"{names[size]}\n{size:g}" for size in at])
    axes.set_xlabel("model, millions of parameters")
    score = scores[0].score
    axes.set_ylabel(score.metric + ("" if score.k is None else f" at k = {score.k}"))
