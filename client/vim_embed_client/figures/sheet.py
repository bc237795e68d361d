"""A sheet of nearest neighbours: each query beside the sources that a model finds most alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vim_embed_client.figures.canvas import CELL, Canvas
from vim_embed_client.figures.images import Images
from vim_embed_client.figures.style import (
    FAINT,
    GREY,
    INK,
    ORANGE,
    called,
    names,
    origins,
    shortened,
    small_print,
    styled,
    title,
)
from vim_embed_client.scoring.embedding_files import EmbeddingFile
from vim_embed_client.scoring.neighbours import Neighbours

# Inches.
_CAPTION = 0.36
_GAP = 0.12
_BETWEEN = 0.16
_MARGIN = 0.2
_LABEL = 0.3
_LEAST_WIDTH = 6.4
_CAPTION_LETTERS = 23


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Rows `queries` of one file, or of two paired ones, with their neighbours in each.

    images: of each file's rows; one and the same for both files where only one view was given.
    """

    files: Sequence[EmbeddingFile]
    images: Sequence[Images]
    queries: Sequence[int]
    neighbours: Sequence[Neighbours]
    labels: Sequence[str]

    @property
    def k(self) -> int:
        """Neighbours of each query."""
        return int(self.neighbours[0].indices.shape[1])

    @property
    def power(self) -> int:
        """Of ten, in which the distances are given: 0, -3 or -6."""
        typical = float(np.median([found.distances for found in self.neighbours]))
        return 0 if typical >= 0.05 else -3 if typical >= 5e-5 else -6

    def agreeing(self, which: int, query: int) -> NDArray[np.bool_]:
        """(k,) which neighbours of a query in file `which` are such in the other file too."""
        if len(self.files) == 1:
            return np.zeros(self.k, bool)
        mine, other = (self.neighbours[i].indices[query] for i in (which, 1 - which))
        return np.isin(mine, other)


@styled()
def sheet_figure(sheet: Sheet) -> Figure:
    """Queries in the first column, neighbours with their distances beside them, nearest first."""
    _load(sheet)
    models = len(sheet.files)
    left = _MARGIN + (_LABEL if models > 1 else 0)
    across = (1 + sheet.k) * (CELL + _GAP) + _GAP
    width = max(_LEAST_WIDTH, left + across + _MARGIN - _GAP)
    rows = len(sheet.queries) * (models * (CELL + _CAPTION) + _BETWEEN)
    figure = Figure(figsize=(width, rows + 4), facecolor="white")
    top, foot = _words(figure, sheet)
    figure.clear()
    figure.set_size_inches(width, rows + top + foot + 0.2)
    _words(figure, sheet)
    canvas = Canvas(figure)
    y = top + 0.26
    canvas.text(left, y - 0.07, "query", size=9.5, colour=INK)
    unit = {0: "", -3: " in 10⁻³", -6: " in 10⁻⁶"}[sheet.power]
    heading = f"nearest first →  (below: cosine distance{unit}, id)"
    canvas.text(left + CELL + 2 * _GAP, y - 0.07, heading, size=9.5, colour=INK)
    for query in range(len(sheet.queries)):
        _query(canvas, sheet, query, left, y)
        y += models * (CELL + _CAPTION) + _BETWEEN
    return figure


def _load(sheet: Sheet) -> None:
    """Read every picture first: the small print says how they were stretched."""
    for images, found in zip(sheet.images, sheet.neighbours, strict=True):
        for row in dict.fromkeys([*sheet.queries, *found.indices.ravel().tolist()]):
            images[row]


def _words(figure: Figure, sheet: Sheet) -> tuple[float, float]:
    """Draw title and small print; the inches that they take."""
    subtitle = f"{called(sheet.files)}, {len(sheet.files[0]):,} sources"
    if len(sheet.files) > 1:
        subtitle += (
            f". Orange frame and ✓: among the {sheet.k} nearest of both, "
            f"{100 * _shared(sheet):.0f} % of those shown"
        )
    top = title(
        figure,
        f"The {sheet.k} nearest neighbours of {len(sheet.queries)} "
        + ("source" if len(sheet.queries) == 1 else "sources"),
        subtitle,
        random_weights=any(file.random_weights for file in sheet.files),
    )
    lines = origins(sheet.files)
    if any(images.stretched for images in sheet.images):
        lines.append("Images that are not 8-bit: each stretched from its 0.5 to 99.5 percentile")
    return top, small_print(figure, lines)


def _shared(sheet: Sheet) -> float:
    return float(np.mean([sheet.agreeing(0, query) for query in range(len(sheet.queries))]))


def _query(canvas: Canvas, sheet: Sheet, query: int, left: float, y: float) -> None:
    row = sheet.queries[query]
    models = len(sheet.files)
    one_view = sheet.images[0] is sheet.images[-1]
    for which in range(models):
        top = y + which * (CELL + _CAPTION)
        if models > 1:
            canvas.text(
                _MARGIN + 0.02, top + CELL / 2, shortened(names(sheet.files)[which], 18), size=8,
                colour=INK, rotation=90, va="center", ha="left",
            )  # fmt: skip
        if which == 0 or not one_view:
            canvas.picture(left, top, sheet.images[which][row], INK, 1.6)
            _caption(canvas, left, top, "", sheet.labels[row])
        _neighbours(canvas, sheet, which, query, left + CELL + 2 * _GAP, top)


def _neighbours(canvas: Canvas, sheet: Sheet, which: int, query: int, x: float, y: float) -> None:
    found = sheet.neighbours[which]
    agreeing, power = sheet.agreeing(which, query), sheet.power
    for place, row in enumerate(found.indices[query]):
        shared = bool(agreeing[place])
        at = x + place * (CELL + _GAP)
        colour, line = (ORANGE, 3.5) if shared else (GREY, 0.6)
        canvas.picture(at, y, sheet.images[which][int(row)], colour, line)
        distance = f"{found.distances[query, place] * 10.0**-power:#.3g}".rstrip(".")
        _caption(canvas, at, y, f"{'✓ ' if shared else ''}{distance}", sheet.labels[row])


def _caption(canvas: Canvas, x: float, y: float, distance: str, name: str) -> None:
    """A distance, and below it a name; a query has a name alone, in the place of both."""
    centre, below = x + CELL / 2, y + CELL + 0.055
    if distance:
        canvas.text(centre, below, distance, size=8.5, colour=INK, ha="center", va="top")
        below += 0.145
    canvas.text(
        centre, below, shortened(name, _CAPTION_LETTERS), size=6.5, ha="center", va="top",
        colour=FAINT if distance else INK,
    )  # fmt: skip
