"""A contact sheet: rows as a model would see them, each with what was cut off."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure

from vim_embed_client.bulk.preview import PreviewRow
from vim_embed_client.figures.canvas import CELL, Canvas
from vim_embed_client.figures.images import Picture, as_picture
from vim_embed_client.figures.style import (
    FAINT,
    GREY,
    INK,
    VERMILLION,
    shortened,
    small_print,
    styled,
    title,
)

# Inches.
_CAPTION = 0.4
_GAP = 0.12
_MARGIN = 0.2
_LEAST_WIDTH = 6.4
_COLUMNS = 8
_CAPTION_LETTERS = 23


@styled()
def contact_sheet(
    rows: Sequence[PreviewRow],
    labels: Sequence[str],
    heading: str,
    remarks: Sequence[str],
    *,
    resized: bool = True,
) -> Figure:
    """Rows in their order, eight a line; a red frame where there is a remark.

    labels: below each. remarks: lines of small print. resized: whether they have a model's size.
    """
    columns = min(_COLUMNS, len(rows))
    lines = -(-len(rows) // columns)
    width = max(_LEAST_WIDTH, 2 * _MARGIN + columns * (CELL + _GAP) - _GAP)
    height = lines * (CELL + _CAPTION)
    figure = Figure(figsize=(width, height + 4), facecolor="white")
    called = "What the model sees" + ("" if resized else ", before it is resized")
    top, foot = _words(figure, called, heading, remarks)
    figure.clear()
    figure.set_size_inches(width, height + top + foot + 0.2)
    _words(figure, called, heading, remarks)
    canvas = Canvas(figure)
    for place, (row, label) in enumerate(zip(rows, labels, strict=True)):
        x = _MARGIN + place % columns * (CELL + _GAP)
        y = top + 0.12 + place // columns * (CELL + _CAPTION)
        _cell(canvas, x, y, row, label)
    return figure


def _words(
    figure: Figure, called: str, heading: str, remarks: Sequence[str]
) -> tuple[float, float]:
    top = title(figure, called, heading)
    foot = small_print(
        figure, ["black: share of pixels that are 0 in all channels; white: 255 in one", *remarks]
    )
    return top, foot


def _picture(row: PreviewRow) -> Picture:
    """Of other bands than three, the last, the middle and the first as red, green and blue."""
    count = len(row.pixels)
    if count == 3:
        return as_picture(row.pixels)
    return as_picture(row.pixels[[count - 1, count // 2, 0]])


def _cell(canvas: Canvas, x: float, y: float, row: PreviewRow, label: str) -> None:
    colour, line = (VERMILLION, 2.0) if row.remark else (GREY, 0.6)
    canvas.picture(x, y, _picture(row), colour, line)
    centre, below = x + CELL / 2, y + CELL + 0.055
    black, white = (f"{100 * share:.1f} %" for share in row.clipped)
    told = f"black {black}, white {white}"
    canvas.text(
        centre, below, told, size=6.5, ha="center", va="top",
        colour=VERMILLION if row.remark else INK,
    )  # fmt: skip
    name = shortened(label, _CAPTION_LETTERS)
    canvas.text(centre, below + 0.13, name, size=6.5, ha="center", va="top", colour=FAINT)
