"""A figure on which pictures and words are placed by inches."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from vim_embed_client.figures.images import Picture

CELL = 1.16  # inches of a picture's side


class Canvas:
    """Places pictures and words by inches from the upper left corner."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.width, self.height = figure.get_size_inches()

    def text(
        self, x: float, y: float, text: str, *, size: float, colour: str, **style: Any
    ) -> None:
        """Words whose place is in inches."""
        self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=size, color=colour, **style
        )

    def picture(self, x: float, y: float, picture: Picture, colour: str, line: float) -> None:
        """A picture of CELL inches, framed by a line of so many points."""
        box = (
            x / self.width,
            1 - (y + CELL) / self.height,
            CELL / self.width,
            CELL / self.height,
        )
        axes = self.figure.add_axes(box)
        axes.imshow(picture, interpolation="antialiased", aspect="equal")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set(visible=True, edgecolor=colour, linewidth=line)
