"""Embeddings as points on a plane, coloured by a column; of two files, with pairs joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, rcParams
from matplotlib.collections import LineCollection
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.ticker import StrMethodFormatter
from numpy.typing import NDArray

from vim_embed_client.errors import InputError
from vim_embed_client.figures.columns import Column
from vim_embed_client.figures.projection import Projection
from vim_embed_client.figures.style import (
    GREY,
    called,
    colours,
    faint,
    names,
    origins,
    shortened,
    small_print,
    title,
)
from vim_embed_client.scoring.embedding_files import EmbeddingFile

# A shape for each colour, for those who cannot tell the colours apart.
_SHAPES = "o^sDvPX"
_PERCENTILES = (2.0, 98.0)
_MANY = 5000
_LETTERS = 16
_RING = 0.9  # points

# Inches.
_WIDTH = 8.4
_AXES = (5.46, 7.25)  # width beside a legend or colour bar, and alone
_HEIGHTS = (2.4, 5.2)
_LEFT = 0.85
_LABELS = 0.55
_SURVEYS = 0.35  # the legend of two files


@dataclass(frozen=True, kw_only=True)
class MapData:
    """What a map shows.

    files: one, or two with the same sources in the same rows. projection: of the rows of all
    files, one file after the other. column: a value for each source. label: what the colours
    mean, with its unit. log: whether numbers are coloured by their logarithm.
    """

    files: Sequence[EmbeddingFile]
    projection: Projection
    column: Column | None = None
    label: str = ""
    log: bool = False

    def points(self, place: int) -> NDArray[np.float64]:
        """(2, n) of a file."""
        n = len(self.files[0])
        return self.projection.coordinates[place * n : (place + 1) * n].T

    def numbers(self) -> NDArray[np.float64]:
        """(n,) values to colour by, NaN where there is none, or no logarithm.

        Raises InputError where no value has one.
        """
        assert self.column is not None
        values: NDArray[np.float64] = self.column.values
        if not self.log:
            return values
        values = np.where(values > 0, values, np.nan)
        if np.isnan(values).all():
            raise InputError(
                f"no value of {self.column.name} is above zero: leave out --log, or colour by "
                "another column"
            )
        return values


def map_figure(data: MapData) -> Figure:
    """The map with a legend or colour bar.

    Both axes have one scale, so that distances on paper are distances of the projection.
    """
    figure = Figure(figsize=(_WIDTH, 9))
    top, foot = _words(figure, data)
    top += _SURVEYS * (len(data.files) > 1)
    across, up = _extent(data.projection.coordinates, alone=data.column is None)
    height = top + 0.15 + up + _LABELS + foot
    figure.clear()
    figure.set_size_inches(_WIDTH, height)
    _words(figure, data)
    box = (_LEFT / _WIDTH, (foot + _LABELS) / height, across / _WIDTH, up / height)
    axes = figure.add_axes(box)
    _dress(axes, data.projection)
    if len(data.files) > 1:
        _join(axes, data)
    _draw(figure, axes, data)
    return figure


def _extent(xy: NDArray[np.float64], *, alone: bool) -> tuple[float, float]:
    """Inches of the axes: as flat as the points are, within limits."""
    across = _AXES[alone]
    width, height = np.ptp(xy, axis=0)
    flatness = height / width if width else 1.0
    return across, float(np.clip(across * flatness, *_HEIGHTS))


def _words(figure: Figure, data: MapData) -> tuple[float, float]:
    method = data.projection.axes[0].split()[0].replace("PC", "PCA")
    by = f", coloured by {shortened(data.label, 48)}" if data.column else ""
    twice = ", seen twice" if len(data.files) > 1 else ""
    top = title(
        figure, f"{method} map of {len(data.files[0]):,} sources{twice}{by}", called(data.files),
        random_weights=any(file.random_weights for file in data.files),
    )  # fmt: skip
    about = f"Map: {data.projection.about}."
    if len(data.files) > 1:
        about += " A line joins the two views of a source."
    if data.column and data.column.kind == "continuous":
        about += " Colours end at the 2nd and the 98th percentile."
        if data.log and (lost := int((data.column.values <= 0).sum())):
            about += f" {lost:,} values are not above zero and have no colour."
    return top, small_print(figure, [about, *origins(data.files)])


def _dress(axes: Any, projection: Projection) -> None:
    axes.set_xlabel(projection.axes[0])
    axes.set_ylabel(projection.axes[1])
    axes.margins(0.04)
    axes.set_aspect("equal", adjustable="datalim")


def _join(axes: Any, data: MapData) -> None:
    """A line between the two points of each source, and the legend of the two files."""
    lines = np.stack([data.points(0).T, data.points(1).T], axis=1)
    many = len(lines) > _MANY
    axes.add_collection(
        LineCollection(
            list(lines), colors=GREY, linewidths=0.7, alpha=0.6 * _alpha(len(lines)),
            zorder=0.5, rasterized=many,
        )
    )  # fmt: skip
    ink = colours()[0] if data.column is None else faint()
    handles = [
        Line2D([], [], ls="", marker="o", ms=6, color=ink, label=names(data.files)[0]),
        Line2D(
            [], [], ls="", marker="o", ms=6, mfc="none", mew=1.2,
            mec=colours()[1] if data.column is None else faint(), label=names(data.files)[1],
        ),
    ]  # fmt: skip
    labels = [str(handle.get_label()) for handle in handles]
    axes.add_artist(
        Legend(
            axes, handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1.0), ncols=2,
            handletextpad=0.2,
        )
    )  # fmt: skip


def _draw(figure: Figure, axes: Any, data: MapData) -> None:
    if data.column is None:
        for place in range(len(data.files)):
            every = np.ones(len(data.files[0]), bool)
            _scatter(axes, data, place, every, colours()[place], "o", alpha=_alpha(len(every)))
    elif data.column.kind == "continuous":
        _continuous(figure, axes, data)
    else:
        _categorical(axes, data)


def _scatter(
    axes: Any,
    data: MapData,
    place: int,
    mask: NDArray[np.bool_],
    colour: Any,
    marker: str,
    **options: Any,
) -> Any:
    """Points of one file: discs, and rings for the second file."""
    n = len(mask)
    # Points of a large survey are drawn as pixels even in .pdf and .svg.
    many = n > _MANY
    look = {"s": _area(n), "rasterized": many, "marker": marker, **options}
    if place:
        look |= {"facecolors": "none", "edgecolors": colour, "linewidths": _RING}
    else:
        look |= {
            "color": colour,
            "edgecolors": rcParams["axes.facecolor"],
            "linewidths": 0 if many else 0.4,
        }
    return axes.scatter(*data.points(place)[:, mask], **look)


def _area(n: int) -> float:
    """Of a point, in square points: smaller where there are many."""
    return float(np.clip(9000 / n, 2.0, 30.0))


def _alpha(n: int) -> float:
    return float(np.clip(1500 / n, 0.25, 0.85))


def _continuous(figure: Figure, axes: Any, data: MapData) -> None:
    values = data.numbers()
    none = np.isnan(values)
    low, high = np.percentile(values[~none], _PERCENTILES)
    norm: Normalize = LogNorm(low, high) if data.log else Normalize(low, high)
    colour_map = colormaps[rcParams["image.cmap"]]
    for place in range(len(data.files)):
        if none.any():
            label = f"no value ({none.sum():,})" if not place else None
            _scatter(axes, data, place, none, GREY, "o", alpha=0.35, label=label)
        _scatter(axes, data, place, ~none, colour_map(norm(values[~none])), "o")
    if none.any():
        _legend(axes, "")
    _colour_bar(figure, axes, data, norm, short=bool(none.any()))


def _colour_bar(figure: Figure, axes: Any, data: MapData, norm: Normalize, *, short: bool) -> None:
    from matplotlib.cm import ScalarMappable

    low, high = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    x0, y0, width, height = axes.get_position().bounds
    bar_axes = figure.add_axes((x0 + width + 0.025, y0, 0.022, height * (0.85 if short else 1)))
    known = data.numbers()
    known = known[~np.isnan(known)]
    bar = figure.colorbar(
        ScalarMappable(norm, rcParams["image.cmap"]), cax=bar_axes, extend=_extend(known, low, high)
    )
    bar.set_label(shortened(data.label, 48))
    bar.ax.grid(False)
    if not data.log and 1e4 <= max(abs(low), abs(high)) < 1e7:
        bar.formatter = StrMethodFormatter("{x:,.0f}")
    if data.log and high < 100 * low:
        for formatter in (bar.ax.yaxis.set_major_formatter, bar.ax.yaxis.set_minor_formatter):
            formatter(StrMethodFormatter("{x:g}"))
    bar.outline.set_visible(False)


def _extend(values: Any, low: float, high: float) -> str:
    below, above = bool((values < low).any()), bool((values > high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (below, above), "neither"
    )


def _categorical(axes: Any, data: MapData) -> None:
    assert data.column is not None
    values = data.column.values
    counts = Counter(values[values != ""].tolist())
    palette = colours()[: len(_SHAPES)]
    shown = [name for name, _ in counts.most_common(len(palette))]
    rest = ~np.isin(values, [*shown, ""])
    groups = [
        (values == name, name if len(name) <= _LETTERS else f"{name[:_LETTERS]}…", *look, 2)
        for name, look in zip(shown, zip(palette, _SHAPES, strict=False), strict=False)
    ]
    groups.append((rest, f"{len(counts) - len(shown)} others", faint(), "h", 1))
    groups.append((values == "", "no value", GREY, "o", 1))
    for mask, name, colour, marker, layer in groups:
        if mask.any():
            for place in range(len(data.files)):
                _scatter(
                    axes, data, place, mask, colour, marker, zorder=layer,
                    alpha=max(0.5, _alpha(len(mask))) if layer > 1 else 0.4,
                    label=None if place else f"{name} ({mask.sum():,})",
                )  # fmt: skip
    _legend(axes, data.label)


def _legend(axes: Any, heading: str) -> None:
    legend = axes.legend(
        title=shortened(heading, 20), loc="upper left", bbox_to_anchor=(1.01, 1.0),
        alignment="left", handletextpad=0.3, borderaxespad=0,
    )  # fmt: skip
    for handle in legend.legend_handles:
        handle.set_sizes([36])
