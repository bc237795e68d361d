"""Score against the size of a model, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from vim_embed_client.figures.style import (
    GREY,
    colours,
    origins,
    points,
    shortened,
    small_print,
    text_inches,
    title,
)
from vim_embed_client.scoring.study import StudyScore

# Inches.
_WIDTH = 7.2
_LEFT = 0.85
_SIDE = 0.25
_ACROSS = _WIDTH - _LEFT - _SIDE
_LETTERS = 28
_AXES = 3.2
_LEGEND = 0.3
_LABELS = 0.75
_ROW = 0.34  # further rows of model names, where they would overlap
_GAP = 0.1

_MARKERS = "o^sDvPX"
_APART = 0.012  # of the decade, between the points of two surveys' pairs


def sizes_figure(scores: Sequence[StudyScore], sizes: Mapping[str, float]) -> Figure:
    """A panel for each metric; a line for each two surveys. sizes: millions of parameters."""
    metrics = list(dict.fromkeys(each.score.metric for each in scores))
    figure = Figure(figsize=(_WIDTH, 9))
    top, foot = _words(figure, scores)
    labels = _labels({each.model: sizes[each.model] for each in scores})
    below = _LABELS + _ROW * max(label.row for label in labels)
    panel = _AXES + below
    height = top + _LEGEND * _legend_rows(scores) + len(metrics) * panel + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, scores)
    for place, metric in enumerate(metrics):
        bottom = foot + below + (len(metrics) - 1 - place) * panel
        axes = figure.add_axes((_LEFT / _WIDTH, bottom / height, _ACROSS / _WIDTH, _AXES / height))
        _draw(axes, [each for each in scores if each.score.metric == metric], sizes)
        _dress(axes, labels)
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
    threshold = max(each.score.threshold for each in scores)
    if not math.isnan(threshold):
        axes.axhline(threshold, ls="--", lw=1.4, color=GREY, label="unrelated, 5 %")
    score = scores[0].score
    at = "" if score.k is None else f" at k = {score.k}"
    axes.set_ylabel(f"{score.metric}{at} (no unit, at most 1)")


@dataclass(frozen=True, kw_only=True)
class _Label:
    """The models of one size, written in a row below the axis. left, right: its ends in inches."""

    size: float
    names: str
    row: int
    left: float
    right: float

    @property
    def text(self) -> str:
        return "\n\n" * self.row + f"{self.names}\n{self.size:g}"


def _labels(sizes: Mapping[str, float]) -> list[_Label]:
    """Labels that do not overlap."""
    models: dict[float, list[str]] = {}
    for model, size in sorted(sizes.items(), key=lambda item: item[1]):
        models.setdefault(size, []).append(model)
    found: list[_Label] = []
    for size, names in models.items():
        text = shortened(", ".join(names), _LETTERS)
        wide = text_inches(text, points("xtick.labelsize"))
        left = _place(size, list(models)) * _ACROSS - wide / 2
        left = min(max(left, -_LEFT), _ACROSS + _SIDE - wide)
        taken = {each.row for each in found if each.right + _GAP > left}
        row = next(row for row in range(len(models)) if row not in taken)
        found.append(_Label(size=size, names=text, row=row, left=left, right=left + wide))
    return found


def _place(size: float, sizes: Sequence[float]) -> float:
    """Where a size is on the axis, from 0 to 1."""
    low, high = _limits(sizes)
    return math.log(size / low) / math.log(high / low)


def _limits(sizes: Sequence[float]) -> tuple[float, float]:
    return min(sizes) / 1.25, max(sizes) * 1.25


def _dress(axes: Any, labels: Sequence[_Label]) -> None:
    sizes = [label.size for label in labels]
    axes.set_xscale("log")
    axes.set_xlim(*_limits(sizes))
    axes.xaxis.set_major_locator(FixedLocator(sizes))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([label.text for label in labels])
    for text, label in zip(axes.get_xticklabels(), labels, strict=True):
        middle = _place(label.size, sizes) * _ACROSS
        if label.right >= _ACROSS + _SIDE - 0.01:
            text.set_ha("right")
        elif label.left > middle - (label.right - label.left) / 2 + 0.01:
            text.set_ha("left")
    axes.set_xlabel("model, millions of parameters")
