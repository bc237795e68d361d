"""What all figures share: colours, title, small print, and how they are written."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from vim_embed_client.score_files import EmbeddingFile

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#8A8A8A"
GREEN, SKY, PURPLE, YELLOW = "#009E73", "#56B4E9", "#CC79A7", "#F0E442"
INK = "#222222"
FAINT = "#666666"

_DPI = 160
_INCHES_PER_LETTER = 0.0062  # and per point of the font's size


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a file of the path's format; text stays text in .svg and .pdf."""
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, dpi=_DPI)


def title(figure: Figure, text: str, subtitle: str = "", *, random_weights: bool = False) -> float:
    """Put a title over the figure, red with a warning for random weights; returns its inches."""
    width, height = figure.get_size_inches()
    lines = fitted(text, 13, width - 0.4)
    colour = INK
    if random_weights:
        lines, colour = ["RANDOM WEIGHTS, not a scientific result", *lines], VERMILLION
    style: dict[str, Any] = {"ha": "left", "va": "top", "linespacing": 1.25}
    figure.text(
        0.2 / width, 1 - 0.18 / height, "\n".join(lines), fontsize=13, fontweight="bold",
        color=colour, **style,
    )  # fmt: skip
    used = 0.18 + 0.23 * len(lines)
    if subtitle:
        more = fitted(subtitle, 10.5, width - 0.4)
        figure.text(
            0.2 / width, 1 - (used + 0.06) / height, "\n".join(more), fontsize=10.5, color=INK,
            **style,
        )  # fmt: skip
        used += 0.06 + 0.185 * len(more)
    return used + 0.12


def small_print(figure: Figure, lines: Sequence[str]) -> float:
    """Put lines at the foot of the figure; returns the inches that they take."""
    width, height = figure.get_size_inches()
    folded = [part for line in lines for part in fitted(line, 7.5, width - 0.4)]
    figure.text(
        0.2 / width, 0.12 / height, "\n".join(folded), fontsize=7.5, color=FAINT, va="bottom",
        ha="left", linespacing=1.3,
    )  # fmt: skip
    return 0.12 + 0.137 * len(folded) + 0.1


def fitted(text: str, size: float, inches: float) -> list[str]:
    """`text` in lines that are at most so wide at a font size in points."""
    return textwrap.wrap(text, max(20, int(inches / (_INCHES_PER_LETTER * size * 1.15)))) or [""]


def origins(files: Sequence[EmbeddingFile]) -> list[str]:
    """A line of small print for each file: what it is called and which model made it."""
    return [
        f"{shortened(file.label, 60)}: {file.origin}"
        + (", RANDOM WEIGHTS" if file.random_weights else "")
        for file in files
    ]


def names(files: Sequence[EmbeddingFile]) -> list[str]:
    """What to call the files: their models where these differ, else file names or labels."""
    for candidates in (
        [file.model for file in files],
        [Path(file.label).name for file in files],
    ):
        if all(candidates) and len(set(candidates)) == len(files):
            return [shortened(name, 40) for name in candidates]
    return [shortened(file.label, 40) for file in files]


def shortened(text: str, letters: int) -> str:
    """At most so many letters; what is cut out is in the middle."""
    if len(text) <= letters:
        return text
    tail = letters * 2 // 3
    return f"{text[: letters - tail - 1]}…{text[-tail:]}"
