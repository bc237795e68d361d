"""What all figures share: colours, title, small print, and how they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib import rcParams, style
from matplotlib.cbook import is_math_text
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from vim_embed_client.bulk.sources.drawn import creator
from vim_embed_client.errors import ConfigurationError
from vim_embed_client.scoring.embedding_files import EmbeddingFile

# Okabe and Ito's palette, which colour-blind readers can tell apart.
BLUE, ORANGE, VERMILLION, GREY = "#0072B2", "#E69F00", "#D55E00", "#8A8A8A"
GREEN, SKY, PURPLE, YELLOW = "#009E73", "#56B4E9", "#CC79A7", "#F0E442"
INK = "#222222"
FAINT = "#666666"

# A matplotlib style of the user's own goes on top of this.
STYLE: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelcolor": INK,
    "axes.labelsize": 11,
    "axes.prop_cycle": "cycler('color', ['0072B2', 'E69F00', '009E73', 'D55E00', 'CC79A7', "
    "'56B4E9', '222222'])",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "white",
    "figure.titlesize": 13,
    "figure.titleweight": "bold",
    "grid.color": "#E6E6E6",
    "image.cmap": "viridis",
    "legend.fontsize": 10,
    "legend.frameon": False,
    "lines.linewidth": 2.2,
    "pdf.fonttype": 42,  # TrueType, so that text stays text
    "savefig.dpi": 160,
    "svg.fonttype": "none",
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
}
_SMALL = 0.75  # of font.size
_HIDDEN = 0.15  # difference in lightness to the background

_MARGIN = 0.2  # inches
_LEADING = 1.3
_SAFE = 0.95  # glyphs are set on whole pixels, which may widen a line


@contextmanager
def styled(sheet: Path | None = None) -> Iterator[None]:
    """Draw and save within this: STYLE, and on top of it a matplotlib style sheet of the user's.

    Raises ConfigurationError where the sheet cannot be read.
    """
    try:
        context = style.context([STYLE, *([str(sheet)] if sheet else [])])
        context.__enter__()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{sheet} is no matplotlib style sheet: {error}") from None
    try:
        yield
    finally:
        context.__exit__(None, None, None)


def save(figure: Figure, path: Path) -> None:
    """Write the figure, .png, .pdf or .svg; text stays text in the latter two."""
    kept = {"svg.fonttype": "none", "pdf.fonttype": 42}
    with style.context(kept):
        dpi = rcParams["savefig.dpi"]
        dpi = STYLE["savefig.dpi"] if dpi == "figure" else dpi
        figure.savefig(path, dpi=dpi, metadata=creator(path))


def colours() -> list[str]:
    """The colours of the style, in order; one that the background hides is that of the labels."""
    found = [to_hex(each["color"]) for each in rcParams["axes.prop_cycle"]]
    ground = _lightness(rcParams["axes.facecolor"])
    seen = (abs(_lightness(colour) - ground) > _HIDDEN for colour in found)
    label = to_hex(rcParams["axes.labelcolor"])
    return [colour if shown else label for colour, shown in zip(found, seen, strict=True)]


def faint() -> str:
    """The colour of small print: between that of labels and the background."""
    label, ground = (to_rgb(rcParams[name]) for name in ("axes.labelcolor", "figure.facecolor"))
    return to_hex([0.7 * one + 0.3 * other for one, other in zip(label, ground, strict=True)])


def _lightness(colour: Any) -> float:
    red, green, blue = to_rgb(colour)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def title(figure: Figure, text: str, subtitle: str = "", *, random_weights: bool = False) -> float:
    """Put a title over the figure, under a warning for random weights; the inches that it takes."""
    used = 0.18
    large, weight = points("figure.titlesize"), str(rcParams["figure.titleweight"])
    ink = str(rcParams["axes.labelcolor"])
    parts = [(text, large, weight, ink), (subtitle, points("legend.fontsize"), "normal", ink)]
    if random_weights:
        parts.insert(0, ("RANDOM WEIGHTS, not a scientific result", large, "bold", VERMILLION))
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
    size = _SMALL * points("font.size")
    folded = [part for line in lines for part in fitted(line, size, width - 2 * _MARGIN)]
    figure.text(
        _MARGIN / width, 0.12 / height, "\n".join(folded), fontsize=size, color=faint(),
        va="bottom", linespacing=_LEADING,
    )  # fmt: skip
    return 0.12 + len(folded) * size * _LEADING / 72 + 0.1


def points(name: str) -> float:
    """A font size of the style, in points."""
    return float(FontProperties(size=rcParams[name]).get_size_in_points())


def fitted(text: str, size: float, inches: float, weight: str = "normal") -> list[str]:
    """`text` in lines of at most so many inches, in a font of `size` points."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_inches(longer, size, weight) <= _SAFE * inches:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def text_inches(text: str, size: float, weight: str = "normal") -> float:
    """How wide a line is in a font of `size` points."""
    font = FontProperties(size=size, weight=weight)
    width, _, _ = text_to_path.get_text_width_height_descent(text, font, is_math_text(text))
    return float(width) / 72


def origins(files: Sequence[EmbeddingFile]) -> list[str]:
    """A line of small print for each file: what it is called and which model made it."""
    lines = (
        f"{shortened(file.label, 60)}: {file.origin}"
        + (", RANDOM WEIGHTS" if file.random_weights else "")
        for file in files
    )
    return list(dict.fromkeys(lines))


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
    """Models and files in a few words: `a and b`, or `model: a and b` where both are of one.

    One file twice is named once.
    """
    model = files[0].model
    shared = model and len(files) > 1 and all(file.model == model for file in files)
    return (f"{model}: " if shared else "") + " and ".join(dict.fromkeys(names(files)))


def told_apart(names: Sequence[str], letters: int) -> list[str]:
    """Names of layers in at most about so many letters, all of them different.

    Parts that all names begin or end with are left out: `blocks.7.mixer` of a dozen blocks is `7`.
    Where what is cut out of the middle would make two names alike, they are numbered.
    """
    parts = [name.split(".") for name in names]
    shortest = min(map(len, parts)) - 1
    columns = list(zip(*(part[:shortest] for part in parts), strict=True))
    front = next((i for i, each in enumerate(columns) if len(set(each)) > 1), len(columns))
    ends = list(zip(*(part[::-1][: shortest - front] for part in parts), strict=True))
    back = next((i for i, each in enumerate(ends) if len(set(each)) > 1), len(ends))
    if len(names) == 1 or max(map(len, names)) <= letters:
        front = back = 0
    kept = [".".join(part[front : len(part) - back]) for part in parts]
    short = [shortened(name, letters) for name in kept]
    if len(set(short)) == len(set(names)):
        return short
    return [f"{place} {shortened(name, letters - 4)}" for place, name in enumerate(kept)]


def shortened(text: str, letters: int) -> str:
    """At most so many letters; what is cut out is in the middle."""
    if len(text) <= letters:
        return text
    tail = letters * 2 // 3
    return f"{text[: letters - tail - 1]}…{text[-tail:]}"
