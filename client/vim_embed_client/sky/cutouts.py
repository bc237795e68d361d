"""A cut-out: pixels of the tiles about a position, brought onto its grid.

Fluxes are interpolated by cubic splines; where the cut-out's pixels are larger than the tile's,
in parts no larger than these, which are averaged. Pixels are fluxes per pixel, so that they are
multiplied by the ratio of the areas, unless the tile's unit is a surface brightness.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Protocol

import numpy as np

from vim_embed_client.formats import Array
from vim_embed_client.sky.cards import Cards, common, without_area
from vim_embed_client.sky.grids import Grid, PixelMap, offsets
from vim_embed_client.sky.sections import Window
from vim_embed_client.sky.tiles import Tile, shift_of

_PAD = 8  # pixels about a window, beyond which a spline's value counts for nothing
_FINER_FROM = 1.02  # tile pixels along a cut-out's pixel, from which on its parts are averaged
_MOST_FINER = 16
_SAME_AREA = 1e-6


class ReadWindow(Protocol):
    """Reads a window of a tile: its fluxes, and which of its pixels are masked."""

    def __call__(self, tile: Tile, window: Window) -> tuple[Array, Array]: ...


@dataclass(frozen=True, slots=True)
class _Piece:
    """What tiles of one grid give to one band. use: the pixels of the cut-out that they give."""

    tiles: tuple[Tile, ...]
    fluxes: Array
    masked: Array
    pixels: PixelMap
    window: Window
    scale: float
    use: Array


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """A cut-out whose windows were read. Called, it is resampled: (bands, side, side).

    Masked pixels and those off the edge are NaN. off_edge, masked: shares of the pixels, in any
    band.
    """

    side: int
    scale: float
    grid: Grid
    off_edge: float
    masked: float
    size: int
    bands: Sequence[Sequence[_Piece]] = field(repr=False)

    def __call__(self) -> Array:
        return np.stack([_resampled(pieces, self.side) for pieces in self.bands])

    def cards(self) -> list[Cards]:
        """For each band, the cards of its tiles that are true of the cut-out too."""
        return [_cards(pieces) for pieces in self.bands]

    def windows(self) -> Iterator[Array]:
        """What was read of each tile, NaN where masked, without the pixels about the cut-out."""
        inner = slice(_PAD, -_PAD)
        for pieces in self.bands:
            for piece in pieces:
                fluxes, masked = piece.fluxes[inner, inner], piece.masked[inner, inner]
                yield np.where(masked, np.nan, fluxes) if masked.any() else fluxes


def cut(grid: Grid, bands: Sequence[Sequence[Tile]], read: ReadWindow, scale: float) -> Cutout:
    """Read what the grid needs of each band's tiles, the best tile first.

    What one tile lacks comes from the next. scale: degrees a pixel, to be told.
    """
    shape = (grid.side, grid.side)
    outside, masked = np.zeros(shape, bool), np.zeros(shape, bool)
    found: list[list[_Piece]] = []
    for tiles in bands:
        pieces, bad, off = _pieces(grid, tiles, read)
        found.append(pieces)
        outside |= off
        masked |= bad
    return Cutout(
        side=grid.side,
        scale=scale,
        grid=grid,
        off_edge=_share(outside),
        masked=_share(masked & ~outside),
        size=sum(piece.fluxes.nbytes for pieces in found for piece in pieces),
        bands=found,
    )


def _share(where: Array) -> float:
    return np.count_nonzero(where) / where.size


def _cards(pieces: Sequence[_Piece]) -> Cards:
    if not pieces:
        return {}
    found = common(tile.cards for piece in pieces for tile in piece.tiles)
    same_area = all(abs(piece.pixels.area - 1) < _SAME_AREA for piece in pieces)
    return found if same_area else without_area(found)


def _pieces(
    grid: Grid, tiles: Sequence[Tile], read: ReadWindow
) -> tuple[list[_Piece], Array, Array]:
    """What the tiles give; which pixels are masked in all of them, and which are on none."""
    shape = (grid.side, grid.side)
    bad, off = np.ones(shape, bool), np.ones(shape, bool)
    left = list(tiles)
    pieces = []
    while left and bad.any():
        first = left.pop(0)
        pixels = PixelMap(grid, first)
        seen = _corners(grid.side) if pixels.shift else offsets(grid.side)
        wanted = _window(*pixels(*seen), pad=_PAD + math.ceil(math.sqrt(pixels.area)))
        parts = [_Part(first, 0, 0)]
        if not wanted.within(first.shape):  # others of the same pixels go on where it ends
            parts += [
                _Part(tile, *shift) for tile in left if (shift := shift_of(first, tile)) is not None
            ]
            left = [tile for tile in left if all(part.tile is not tile for part in parts)]
        there = [part for part in parts if not part.within(wanted).empty]
        if not there:
            continue
        fluxes, state, window = _assembled(there, wanted, read)
        if window == wanted and (state == _GOOD).all():
            use = bad.copy()
            off[:] = False
        else:
            use = bad & _good(*pixels(*offsets(grid.side)), state, window, off)
        if use.any():
            scale = 1.0 if first.per_solid_angle else pixels.area
            of = tuple(part.tile for part in there)
            pieces.append(_Piece(of, fluxes, state != _GOOD, pixels, window, scale, use))
            bad &= ~use
    return pieces, bad, off


def _good(x: Array, y: Array, state: Array, window: Window, off: Array) -> Array:
    """Which coordinates are at a pixel that counts; `off` is told where there is any."""
    at = _nearest(y, window.bottom, window.top), _nearest(x, window.left, window.right)
    found = np.where((at[0] >= 0) & (at[1] >= 0), state[at], _NOTHING)
    off &= found == _NOTHING
    return np.asarray(found == _GOOD)


# What is at a pixel of a window: no tile, a pixel that is masked, or one that counts.
_NOTHING, _MASKED, _GOOD = 0, 1, 2


@dataclass(frozen=True, slots=True)
class _Part:
    """A tile whose pixel (0, 0) is the pixel (across, up) of another one."""

    tile: Tile
    across: int
    up: int

    def within(self, wanted: Window) -> Window:
        """What of a window of that other tile's pixels it has, in its own."""
        (height, width), own = self.tile.shape, wanted.moved(-self.up, -self.across)
        return Window(
            max(0, own.bottom), min(height, own.top), max(0, own.left), min(width, own.right)
        )


def _assembled(
    parts: Sequence[_Part], wanted: Window, read: ReadWindow
) -> tuple[Array, Array, Window]:
    """Fluxes and state of the least window that holds all that the parts have of it."""
    own = [part.within(wanted) for part in parts]
    here = [window.moved(part.up, part.across) for part, window in zip(parts, own, strict=True)]
    whole = Window(
        min(one.bottom for one in here), max(one.top for one in here),
        min(one.left for one in here), max(one.right for one in here),
    )  # fmt: skip
    found = [read(part.tile, window) for part, window in zip(parts, own, strict=True)]
    if len(found) == 1:
        fluxes, masked = found[0]
        return fluxes, _state(masked), whole
    fluxes = np.full(whole.shape, np.nan, np.result_type(*(one for one, _ in found)))
    state = np.full(whole.shape, _NOTHING, np.uint8)
    for window, (values, masked) in zip(here, found, strict=True):
        at = (
            slice(window.bottom - whole.bottom, window.top - whole.bottom),
            slice(window.left - whole.left, window.right - whole.left),
        )
        theirs = _state(masked)
        better = theirs > state[at]
        fluxes[at][better], state[at][better] = values[better], theirs[better]
    return fluxes, state, whole


def _state(masked: Array) -> Array:
    return np.subtract(_GOOD, masked, dtype=np.uint8)


def _nearest(coordinates: Array, first: int, last: int) -> Array:
    """Places from `first` of the nearest pixels, -1 beyond the window and for NaN."""
    with np.errstate(invalid="ignore"):
        places = np.floor(coordinates + 0.5) - first
        found: Array = np.where((places >= 0) & (places < last - first), places, -1).astype(int)
    return found


@cache
def _corners(side: int) -> tuple[Array, Array]:
    """Offsets of the first and of the last pixel, between which all others of a shift lie."""
    ends = np.array([0.5 - side / 2, side / 2 - 0.5])
    return ends, ends


def _window(x: Array, y: Array, *, pad: int) -> Window:
    """What holds all coordinates that are numbers, with `pad` pixels about it."""
    ends: list[int] = []
    for values in (y, x):
        known = values[np.isfinite(values)]
        if not known.size:
            return Window(0, 0, 0, 0)
        ends += [math.floor(known.min()) - pad, math.ceil(known.max()) + pad + 1]
    return Window(*ends)


def _resampled(pieces: Sequence[_Piece], side: int) -> Array:
    dtype = np.result_type(np.float32, *(piece.fluxes.dtype for piece in pieces))
    found = np.full((side, side), np.nan, dtype)
    for piece in pieces:
        np.copyto(found, _sampled(piece, side), where=piece.use)
    return found


def _sampled(piece: _Piece, side: int) -> Array:
    from scipy import ndimage

    fluxes = piece.fluxes
    if piece.masked.any():
        good = fluxes[~piece.masked]
        fluxes = np.where(piece.masked, np.median(good) if good.size else 0, fluxes)
    along = math.sqrt(piece.pixels.area)
    finer = 1 if along < _FINER_FROM else min(_MOST_FINER, math.ceil(along))
    if piece.pixels.shift and along == 1:
        return _shifted(fluxes, piece, side)
    x, y = piece.pixels(*offsets(side, finer))
    at = np.stack([y - piece.window.bottom, x - piece.window.left])
    values: Array = ndimage.map_coordinates(fluxes, at, order=3, mode="nearest")
    if finer > 1:
        values = values.reshape(side, finer, side, finer).mean(axis=(1, 3))
    scaled: Array = values * fluxes.dtype.type(piece.scale)
    return scaled


def _shifted(fluxes: Array, piece: _Piece, side: int) -> Array:
    """The same by a whole and a part of a pixel: a matrix along one axis, and one along the other.

    The weights are the same for every row and every column then, which takes a tenth of the time.
    """
    first: Array = np.full(1, -(side - 1) / 2)
    x, y = (float(one[0]) for one in piece.pixels(first, first))
    height, width = fluxes.shape
    up = _spline_at(y - piece.window.bottom, side, height)
    across = _spline_at(x - piece.window.left, side, width)
    kind = fluxes.dtype
    moved: Array = up.astype(kind) @ fluxes @ across.astype(kind).T
    return moved


def _spline_at(first: float, side: int, length: int) -> Array:
    """(side, length): from `length` values to their cubic spline, from `first` on, one apart."""
    whole = math.floor(first)
    nearby = _nearby if side <= _CACHED_SIDE else _nearby.__wrapped__
    weights = (first - whole) ** _POWERS @ _basis()
    found: Array = weights @ nearby(whole, side, length)
    return found.reshape(side, length)


# Cut-outs of one size need the same few arrays again and again; larger ones would fill the memory.
_CACHED_SIDE = 256
_POWERS = np.arange(3, -1, -1)


@lru_cache(maxsize=8)
def _nearby(whole: int, side: int, length: int) -> Array:
    """(4, side × length): the coefficients one before `whole` and three from there, of each place.

    What would be beyond the ends is as it is at the ends.
    """
    coefficients, places = _spline_coefficients(length), whole + np.arange(side)
    near = [coefficients.take(places + step, 0, mode="clip") for step in range(-1, 3)]
    return np.stack(near).reshape(4, -1)


@lru_cache(maxsize=64)
def _spline_coefficients(length: int) -> Array:
    """(length, length): from values to the coefficients of their cubic spline."""
    from scipy import ndimage

    found: Array = ndimage.spline_filter1d(np.eye(length), order=3, axis=0)
    return found


@cache
def _basis() -> Array:
    """(4, 4): from powers of a part of a pixel, the third first, to the weights of cubic B-splines.

    Of that which is one pixel before, at, and one and two pixels after the whole pixel.
    """
    from scipy.interpolate import BSpline, PPoly

    spline = PPoly.from_spline(BSpline.basis_element(np.arange(-2, 3)))
    piece = np.searchsorted(spline.x, [1, 0, -1, -2], side="right") - 1
    found: Array = spline.c[:, piece]
    return found
