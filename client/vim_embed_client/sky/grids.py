"""The pixels of a cut-out, and where they lie on the tiles of a mosaic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Protocol

import numpy as np

from vim_embed_client.formats import Array
from vim_embed_client.sky.angles import astropy
from vim_embed_client.sky.tiles import Tile

_POINTS = 7  # along a side, at which the projections are asked
_CLOSE = 0.01  # pixels that a quadratic may differ from them


class Grid(Protocol):
    """A square of `side` by `side` pixels about a position."""

    @property
    def side(self) -> int: ...

    def to_sky(self, u: Array, v: Array) -> tuple[Array, Array]:
        """ICRS degrees at offsets from the centre, in pixels of the grid."""
        ...


@dataclass(frozen=True)
class NorthUp:
    """North up and east left about a position (degrees), in pixels of `scale` degrees."""

    ra: float
    dec: float
    scale: float
    side: int

    def to_sky(self, u: Array, v: Array) -> tuple[Array, Array]:
        wcs = astropy("wcs").WCS(naxis=2)
        wcs.wcs.ctype = "RA---TAN", "DEC--TAN"
        wcs.wcs.crval, wcs.wcs.crpix = (self.ra, self.dec), (1, 1)
        wcs.wcs.cdelt = -self.scale, self.scale
        ra, dec = wcs.wcs_pix2world(u, v, 0)
        return ra, dec


@dataclass(frozen=True)
class AlongTile:
    """Along the rows and columns of a tile about its pixel (x, y), in steps of its pixels."""

    tile: Tile
    x: float
    y: float
    step: float
    side: int

    def to_sky(self, u: Array, v: Array) -> tuple[Array, Array]:
        return self.tile.projection.to_sky(self.x + self.step * u, self.y + self.step * v)


def wcs_cards(grid: Grid) -> dict[str, str | float]:
    """Cards of a FITS header that say where the grid's pixels lie: tangential, ICRS."""
    steps = np.array([[0.0, 0], [1, 0], [0, 1]])
    ra, dec = grid.to_sky(*steps.T)
    turn = np.cos(np.radians(dec[0]))
    across, up = (
        (((ra[step] - ra[0] + 180) % 360 - 180) * turn, dec[step] - dec[0]) for step in (1, 2)
    )
    middle = (grid.side + 1) / 2
    return {
        "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "RADESYS": "ICRS",
        "CUNIT1": "deg", "CUNIT2": "deg", "CRPIX1": middle, "CRPIX2": middle,
        "CRVAL1": float(ra[0]), "CRVAL2": float(dec[0]),
        "CD1_1": float(across[0]), "CD1_2": float(up[0]),
        "CD2_1": float(across[1]), "CD2_2": float(up[1]),
    }  # fmt: skip


class PixelMap:
    """Where offsets on a grid lie on a tile: (u, v) to its pixels (x, y).

    A quadratic through 49 points, which is right to a hundredth of a pixel over a cut-out, or the
    projections themselves where it is not.
    """

    def __init__(self, grid: Grid, tile: Tile) -> None:
        self._grid, self._tile = grid, tile
        self.shift = isinstance(grid, AlongTile) and grid.tile is tile
        self._exact = False
        self._x, self._y = np.zeros(6), np.zeros(6)
        if isinstance(grid, AlongTile) and grid.tile is tile:
            self._x[:2], self._y[[0, 2]] = (grid.x, grid.step), (grid.y, grid.step)
            return
        u, v, terms, inverse = _design(grid.side)
        x, y = self._projected(u, v)
        self._x, self._y = inverse @ x, inverse @ y
        apart = max(np.abs(terms @ self._x - x).max(), np.abs(terms @ self._y - y).max())
        self._exact = not apart < _CLOSE

    @property
    def area(self) -> float:
        """The tile's pixels in the grid's pixel at the centre."""
        (_, xu, xv, *_), (_, yu, yv, *_) = self._x, self._y
        return float(abs(xu * yv - xv * yu))

    def __call__(self, u: Array, v: Array) -> tuple[Array, Array]:
        """x and y of offsets of any one shape."""
        if self.shift:
            return self._x[0] + self._x[1] * u, self._y[0] + self._y[2] * v
        if self._exact:
            return self._projected(u, v)
        terms = _terms(u, v)
        return sum_of(terms, self._x), sum_of(terms, self._y)

    def _projected(self, u: Array, v: Array) -> tuple[Array, Array]:
        ra, dec = self._grid.to_sky(u.ravel(), v.ravel())
        x, y = self._tile.projection.to_pixels(ra, dec)
        return x.reshape(u.shape), y.reshape(u.shape)


def sum_of(terms: Array, weights: Array) -> Array:
    """The terms (6, …) weighted and added up."""
    found: Array = np.tensordot(weights, terms, 1)
    return found


def _terms(u: Array, v: Array) -> Array:
    return np.stack([np.ones_like(u), u, v, u * u, u * v, v * v])


@cache
def _design(side: int) -> tuple[Array, Array, Array, Array]:
    """Points over the grid, the terms at them (points, 6), and the least-squares inverse."""
    ends = np.linspace(-side / 2, side / 2, _POINTS)
    u, v = (one.ravel() for one in np.meshgrid(ends, ends))
    terms = _terms(u, v).T
    return u, v, terms, np.linalg.pinv(terms)


@cache
def offsets(side: int, finer: int = 1) -> tuple[Array, Array]:
    """u and v of a grid's pixels, or of `finer` by `finer` parts of each."""
    steps = (np.arange(side * finer) + 0.5) / finer - side / 2
    u, v = np.meshgrid(steps, steps)
    return u, v
