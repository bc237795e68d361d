"""What all figures share: colours, title, small print, and how they are written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import TextPath

from vim_embed_client.scoring.embedding_files import EmbeddingFile

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#8A8A8A"
GREEN, SKY, PURPLE, YELLOW = "#009E73", "#56B4E9", "#CC79A7", "#F0E442"
INK = "#222222"
FAINT = "#666666"

_DPI = 160
_MARGIN = 0.2  # inches
_LEADING = 1.3
_SAFE = 0.95  # glyphs are set on whole pixels, which may widen a line


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a file of the path's format; text stays text in .svg and .pdf."""
    with rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        figure.savefig(path, dpi=_DPI)


def title(figure: Figure, text: str, subtitle: str = "", *, random_weights: bool = False) -> float:
    """Put a title over the figure, under a warning for random weights; the inches that it takes."""
    used = 0.18
    parts = [(text, 13.0, "bold", INK), (subtitle, 10.5, "normal", INK)]
    if random_weights:
        parts.insert(0, ("RANDOM WEIGHTS, not a scientific result", 13.0, "bold", VERMILLION))
    width, height = figure.get_size_inches()
    for words, size, weight, colour in parts:
        lines = fitted(words, size, width - 2 * _MARGIN, weight) if words else []
        figure.text(
            _MARGIN / width, 1 - used / height, "\n".join(lines), fontsize=size, weight=weight,
            color=colour, va="top", linespacing=_LEADING,
        )  # fmt: skip
        used += len(lines) * size * _LEADING / 72 + 0.03
    return used


def small_print(figure: Figure, lines: Sequence[str]) -> float:
    """Put lines at the foot of the figure; the inches that they take."""
    width, height = figure.get_size_inches()
    size = 7.5
    folded = [part for line in lines for part in fitted(line, size, width - 2 * _MARGIN)]
    figure.text(
        _MARGIN / width, 0.12 / height, "\n".join(folded), fontsize=size, color=FAINT, va="bottom",
        linespacing=_LEADING,
    )  # fmt: skip
    return 0.12 + len(folded) * size * _LEADING / 72 + 0.1


def fitted(text: str, size: float, inches: float, weight: str = "normal") -> list[str]:
    """`text` in lines of at most so many inches, in a font of `size` points."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and _inches(longer, size, weight) <= _SAFE * inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def _inches(text: str, size: float, weight: str) -> float:
    path = TextPath((0, 0), text, size=size, prop=FontProperties(weight=weight))
    return float(path.get_extents().width) / 72


def origins(files: Sequence[EmbeddingFile]) -> list[str]:
    """A line of small print for each file: what it is called and which model made it."""
    return [
        f"{shortened(file.label, 60)}: {file.origin}"
        + (", RANDOM WEIGHTS" if file.random_weights else "")
        for file in files
    ]


def names(files: Sequence[EmbeddingFile]) -> list[str]:
    """What to call the files: by model, array, file or folder, by what tells them apart."""
    for candidates in (
        [file.model for file in files],
        [file.array for file in files],
        [file.path.stem for file in files],
    ):
        if all(candidates) and len(set(candidates)) == len(files):
            return [shortened(name, 32) for name in candidates]
    return [shortened(file.label, 32) for file in files]


def called(files: Sequence[EmbeddingFile]) -> str:
    """Models and files in a few words: `a and b`, or `model: a and b` where both are of one."""
    model = files[0].model
    shared = model and len(files) > 1 and all(file.model == model for file in files)
    return (f"{model}: " if shared else "") + " and ".join(names(files))


def shortened(text: str, letters: int) -> str:
    """At most so many letters; what is cut out is in the middle."""
    if len(text) <= letters:
        return text
    tail = letters * 2 // 3
    return f"{text[: letters - tail - 1]}…{text[-tail:]}"
