"""A sheet of images with what a Vim attends to, and how large its tokens are, laid over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vim_embed_client.explain.local import Explanation, Floats
from vim_embed_client.figures.images import as_picture
from vim_embed_client.figures.style import FAINT, INK, ORANGE, shortened, small_print, title

# Inches.
_CELL = 2.0
_GAP = 0.15
_CAPTION = 0.3
_MARGIN = 0.2
_HEADING = 0.28


def attention_sheet(found: Explanation, block: int | None) -> Figure:
    """A row an image: the image, attention, norms. block: which one; None: the mean over all."""
    n = len(found.ids)
    width = 2 * _MARGIN + 3 * _CELL + 2 * _GAP
    figure = Figure(figsize=(width, n * (_CELL + _CAPTION) + 4), facecolor="white")
    top, foot = _words(figure, found, block)
    figure.clear()
    height = n * (_CELL + _CAPTION) + top + foot + _HEADING + 0.2
    figure.set_size_inches(width, height)
    _words(figure, found, block)
    columns = [_MARGIN + i * (_CELL + _GAP) for i in range(3)]
    headings = ("image", f"attention of the {found.token_name}", "norms of tokens")
    for x, heading in zip(columns, headings, strict=True):
        figure.text(x / width, 1 - (top + 0.18) / height, heading, fontsize=9.5, color=INK)
    attention = shares(found.attention)
    for row in range(n):
        y = top + _HEADING + row * (_CELL + _CAPTION)
        boxes = [
            (x / width, 1 - (y + _CELL) / height, _CELL / width, _CELL / height) for x in columns
        ]
        looked = chosen(attention[row], block)
        sizes = found.norms[row, -1 if block is None else block]
        _panel(figure, boxes[0], found, row, None)
        _panel(figure, boxes[1], found, row, looked)
        _panel(figure, boxes[2], found, row, sizes)
        captions = (shortened(found.ids[row], 32), _looked(found, looked), _sizes(sizes))
        for x, caption in zip(columns, captions, strict=True):
            at = (x + _CELL / 2) / width, 1 - (y + _CELL + 0.05) / height
            figure.text(*at, caption, fontsize=7, color=FAINT, ha="center", va="top")
    return figure


def shares(attention: Floats) -> Floats:
    """(n, blocks, L) attention of each block as shares that add up to 1."""
    total = attention.sum(axis=-1, keepdims=True)
    found: Floats = np.divide(attention, total, out=np.zeros_like(attention), where=total > 0)
    return found


def chosen(by_block: Floats, block: int | None) -> Floats:
    """(L,) of (blocks, L): one block, or the mean over all."""
    picked: Floats = by_block.mean(axis=0) if block is None else by_block[block]
    return picked


def _words(figure: Figure, found: Explanation, block: int | None) -> tuple[float, float]:
    which = "the mean over all blocks" if block is None else f"block {block}"
    top = title(
        figure,
        f"Where {found.model} looks",
        f"Hidden attention of the {found.token_name}, {which}",
        random_weights=found.random_weights,
    )
    norms = "the last block" if block is None else which
    lines = [
        "Attention: |alpha|, mean over channels, as shares (docs/explain.md).",
        f"Norms: residual stream after {norms}. Each panel has its own scale.",
        f"{found.model}, weights {shortened(found.weights, 40)}",
    ]
    return top, small_print(figure, lines)


def _panel(
    figure: Figure, box: Sequence[float], found: Explanation, row: int, values: Floats | None
) -> None:
    axes: Any = figure.add_axes(tuple(box))  # type: ignore[arg-type]
    picture = as_picture(np.asarray(found.pixels[row]))
    height, width = picture.shape[:2]
    if values is None:
        axes.imshow(picture, interpolation="antialiased")
    else:
        rows, columns = found.grid
        grid = values[list(found.patches)].reshape(rows, columns)
        axes.imshow(picture.mean(axis=2), cmap="gray", interpolation="antialiased")
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(grid, cmap="inferno", alpha=0.65, extent=extent, interpolation="nearest")
        if found.token in found.patches:
            y, x = divmod(found.patches.index(found.token), columns)
            size = width / columns, height / rows
            corner = x * size[0] - 0.5, y * size[1] - 0.5
            axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=ORANGE, linewidth=1.5))
    axes.set_xticks([])
    axes.set_yticks([])


def _looked(found: Explanation, looked: Floats) -> str:
    patches = looked[list(found.patches)]
    return f"itself {looked[found.token]:.1%}, most of a patch {patches.max():.1%}"


def _sizes(sizes: Floats) -> str:
    return f"{sizes.min():.3g} to {sizes.max():.3g}, median {np.median(sizes):.3g}"
