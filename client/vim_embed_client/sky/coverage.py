"""Which tiles have pixels for which positions, and how much of a cut-out they can have at most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from vim_embed_client.formats import Array
from vim_embed_client.sky.tiles import Tile

# A tile, and where on it a position is.
At = tuple[Tile, float, float]


@dataclass(frozen=True)
class Nearby:
    """Tiles by the positions' places: a tile's number, and where on it the position is."""

    places: Array
    numbers: Array
    x: Array
    y: Array

    @classmethod
    def of(cls, tiles: Sequence[Tile], ra: Array, dec: Array, *, reach: float) -> Nearby:
        """The tiles with pixels within `reach` degrees of (n,) positions, of which some are NaN."""
        there = np.flatnonzero(np.isfinite(ra))
        found: list[tuple[Array, Array, Array, Array]] = []
        for tile in tiles:
            places, x, y = tile.covers(ra[there], dec[there], reach)
            found.append((there[places], np.full(len(places), tile.number), x, y))
        joined = [np.concatenate(one) for one in zip(*found, strict=True)]
        order = np.argsort(joined[0], kind="stable")
        return cls(*(one[order] for one in joined))

    def tiles(self, place: int, tiles: Sequence[Tile], bands: int) -> list[list[At]]:
        """For each band: the tiles with pixels for a position, the one it is deepest in first."""
        first, last = np.searchsorted(self.places, (place, place + 1))
        found: list[list[At]] = [[] for _ in range(bands)]
        for at in range(first, last):
            tile = tiles[self.numbers[at]]
            found[tile.band].append((tile, float(self.x[at]), float(self.y[at])))
        for some in found:
            some.sort(key=lambda at: -_depth(*at))
        return found

    def least_off_edge(
        self, tiles: Sequence[Tile], *, size: float, scale: float, turned: bool
    ) -> float:
        """A share of its pixels that every square about a position has off the edge, at least.

        By the outlines of the first band's tiles alone: no pixel is read for it, and the true
        share may be larger. size, scale: degrees, of the square and of its pixels. turned: the
        square may lie otherwise than the tiles.
        """
        outlines = np.array([_outline(tile) for tile in tiles])
        own = np.array([tile.band == 0 for tile in tiles])[self.numbers]
        if not own.any():
            return 0.0
        places, numbers = self.places[own], self.numbers[own]
        height, width, least, largest = outlines[numbers].T
        # Where several tiles share a position, the square lies as one of them.
        alone = np.bincount(places)[places] == 1
        reach = np.where(alone & (not turned), 0.5, np.sqrt(0.5)) * size / least
        edge = 1 + 0.5 * scale / least  # pixels count by their centres
        area = largest**2
        for at, side in ((self.x[own], width), (self.y[own], height)):
            high = np.minimum(at + reach, side - 0.5) + edge
            area = area * np.maximum(0, high - np.maximum(at - reach, -0.5) + edge)
        covered = np.bincount(places, area) / size**2
        return float(max(0.0, 1 - covered[np.unique(places)].max()))


def _outline(tile: Tile) -> tuple[float, float, float, float]:
    """Pixels up and across, and the least and the largest scale of these in degrees."""
    height, width = tile.shape
    return height, width, *tile.pixel_scales


def _depth(tile: Tile, x: float, y: float) -> float:
    """Degrees from the nearest edge; beyond it, less than 0."""
    height, width = tile.shape
    return min(x, width - 1 - x, y, height - 1 - y) * tile.pixel_scale
