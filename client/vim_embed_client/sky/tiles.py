"""One image of a mosaic: where on the sky it lies, and which positions are on it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np

from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_client.sky.angles import astropy
from vim_embed_client.sky.cards import Cards

_SAME_GRID = 0.01  # pixels by which two tiles of one grid may be apart
_SAME_MATRIX = 1e-3  # of the largest element
_NO_AREA = 1e-9  # of the square of a pixel's longer side
_WITHOUT_AREA = "its WCS gives its pixels no area: look at CD1_1 and so on, or CDELT1"
_EDGE = 9  # points along an edge, by which the footprint is told
# Also in a unit that astropy cannot read, such as `10**-20 erg/s/cm2/arcsec2` or `JY/BEAM`.
_AREA = r"(sr|steradian|beam|(arcsec|arcmin|deg)[\^*(]*2)"
_SOLID_ANGLE = re.compile(rf"/\s*{_AREA}|(sr|beam)[\^*(]*-1|(arcsec|arcmin|deg)[\^*(]*-2")
_UNIT_FORMATS = (None, "fits", "vounit", "cds")


class Projection:
    """A WCS between 0-based pixels (x, y) and ICRS degrees, with all its distortions.

    Raises InputError for a header without celestial coordinates.
    """

    def __init__(self, header: Any, file: Any = None) -> None:
        self._wcs = astropy("wcs").WCS(header, fobj=file, naxis=2)
        if not self._wcs.has_celestial:
            raise InputError("its header has no sky coordinates (WCS): CTYPE1, CTYPE2 and so on")
        _check_matrices(header)
        matrix = self._wcs.celestial.pixel_scale_matrix
        if not abs(np.linalg.det(matrix)) > _NO_AREA * np.abs(matrix).max() ** 2:
            raise InputError(_WITHOUT_AREA)
        self._latitude_first = self._wcs.wcs.lng == 1
        frame = self._celestial_frame()
        self._frame = None if frame.name == "icrs" else frame

    def _celestial_frame(self) -> Any:
        try:
            return astropy("wcs.utils").wcs_to_celestial_frame(self._wcs)
        except ValueError:
            told = self._wcs.wcs.radesys or ", ".join(self._wcs.wcs.ctype)
            raise InputError(
                f"its frame {told} is none that astropy has: write ICRS, FK5 or FK4 into RADESYS"
            ) from None

    def to_sky(self, x: Array, y: Array) -> tuple[Array, Array]:
        """Right ascension and declination of pixels."""
        lon, lat = self._ordered(*self._wcs.all_pix2world(x, y, 0))
        if self._frame is None:
            return lon, lat
        return _converted(self._frame, lon, lat, astropy("coordinates").ICRS())

    def to_pixels(self, ra: Array, dec: Array) -> tuple[Array, Array]:
        """x and y of positions, NaN where the projection has none."""
        if self._frame is not None:
            ra, dec = _converted(astropy("coordinates").ICRS(), ra, dec, self._frame)
        x, y = self._wcs.all_world2pix(*self._ordered(ra, dec), 0, quiet=True)
        return x, y

    def _ordered(self, first: Array, second: Array) -> tuple[Array, Array]:
        return (second, first) if self._latitude_first else (first, second)


def _check_matrices(header: Any) -> None:
    """Raise InputError for a CD matrix and a PC matrix that differ: the standard allows one."""
    places = [(i, j) for i in (1, 2) for j in (1, 2)]
    if not all(any(f"{kind}{i}_{j}" in header for i, j in places) for kind in ("CD", "PC")):
        return
    told = [float(header.get(f"CD{i}_{j}", 0)) for i, j in places]
    other = [
        float(header.get(f"PC{i}_{j}", i == j)) * float(header.get(f"CDELT{i}", 1))
        for i, j in places
    ]
    if not np.allclose(told, other, rtol=_SAME_MATRIX, atol=_SAME_MATRIX * max(map(abs, told))):
        raise InputError(
            "its header has two matrices that differ, CD1_1 and so on, and PC1_1 with CDELT1: "
            "delete the one that is wrong"
        )


def _converted(source: Any, lon: Array, lat: Array, target: Any) -> tuple[Array, Array]:
    sky = astropy("coordinates").SkyCoord(lon, lat, unit="deg", frame=source).transform_to(target)
    return sky.spherical.lon.degree, sky.spherical.lat.degree


@dataclass(frozen=True, eq=False)
class Tile:
    """An image of (H, W) pixels with a projection.

    number: among the tiles of a run. band: among its bands. key: which plane of which file it is.
    per_solid_angle: whether its unit is a surface brightness, which resampling does not scale.
    cards: of its header, what describes its pixels.
    """

    number: int
    name: str
    band: int
    key: tuple[str, str, int | None]
    shape: tuple[int, int]
    projection: Projection
    per_solid_angle: bool = False
    cards: Cards = field(default_factory=dict)

    @cached_property
    def pixel_scale(self) -> float:
        """Degrees along the side of the pixel in the middle: the root of its area.

        Raises InputError where it has none.
        """
        height, width = self.shape
        found = self._scale_at((width - 1) / 2, (height - 1) / 2)
        if not found > 0:
            raise InputError(_WITHOUT_AREA)
        return found

    @cached_property
    def pixel_scales(self) -> tuple[float, float]:
        """The least and the largest scale, as `pixel_scale`, of its corners and its middle.

        0 and infinity where the projection has no positions at a corner.
        """
        height, width = self.shape
        corners = [self._scale_at(x, y) for x in (0, width - 1) for y in (0, height - 1)]
        if not np.isfinite(corners).all():
            return 0.0, np.inf
        return min(self.pixel_scale, *corners), max(self.pixel_scale, *corners)

    def _scale_at(self, x: float, y: float) -> float:
        half = 0.5
        steps = np.array([[x - half, y], [x + half, y], [x, y - half], [x, y + half]])
        ra, dec = self.projection.to_sky(*steps.T)
        left, right, below, above = _vectors(ra, dec)
        return float(np.degrees(np.sqrt(np.linalg.norm(np.cross(right - left, above - below)))))

    @property
    def sides(self) -> tuple[float, float]:
        """Degrees across and up, by the scale in its middle."""
        height, width = self.shape
        return width * self.pixel_scale, height * self.pixel_scale

    @cached_property
    def middle(self) -> tuple[float, float]:
        """Right ascension and declination of its middle, in degrees."""
        height, width = self.shape
        ra, dec = self.projection.to_sky(np.array([(width - 1) / 2]), np.array([(height - 1) / 2]))
        return float(ra[0]), float(dec[0])

    def check(self) -> None:
        """Raise InputError, or what astropy raises, where its projection is of no use."""
        if not np.isfinite([self.pixel_scale, *self._cap[0]]).all():
            raise InputError("its WCS has no positions")

    @cached_property
    def _cap(self) -> tuple[Array, float]:
        """The circle on the sphere that holds it: a unit vector and a radius in radians."""
        height, width = self.shape
        x, y = np.linspace(-0.5, width - 0.5, _EDGE), np.linspace(-0.5, height - 0.5, _EDGE)
        edges = [(x, np.full(_EDGE, end)) for end in (y[0], y[-1])]
        edges += [(np.full(_EDGE, end), y) for end in (x[0], x[-1])]
        along = np.concatenate([*edges, (x[4:5], y[4:5])], axis=1)
        vectors = _vectors(*self.projection.to_sky(*along))
        if not np.isfinite(vectors).all():
            return np.array([0.0, 0.0, 1.0]), np.pi
        middle = vectors[-1]
        apart = np.arccos(np.clip(vectors @ middle, -1, 1)).max()
        return middle, float(min(np.pi, 1.05 * apart))

    def covers(self, ra: Array, dec: Array, reach: float) -> tuple[Array, Array, Array]:
        """Which of (n,) positions have pixels of this tile within `reach` degrees.

        Returns their places among the positions, and their x and y on the tile.
        """
        middle, radius = self._cap
        near = _vectors(ra, dec) @ middle >= np.cos(min(np.pi, radius + np.radians(reach)))
        places = np.flatnonzero(near)
        if not len(places):
            return places, np.empty(0), np.empty(0)
        x, y = self.projection.to_pixels(ra[places], dec[places])
        pad = reach / self.pixel_scale
        height, width = self.shape
        on = (x > -pad) & (x < width - 1 + pad) & (y > -pad) & (y < height - 1 + pad)
        return places[on], x[on], y[on]


@lru_cache(maxsize=1 << 16)
def shift_of(first: Tile, other: Tile) -> tuple[int, int] | None:
    """Where on `first` the pixel (0, 0) of `other` lies, if both have the pixels of one grid.

    So it is with the patches of a tract, which a projection was cut into. None for other grids.
    """
    height, width = other.shape
    x, y = np.array([0.0, width - 1, 0, width - 1]), np.array([0.0, 0, height - 1, height - 1])
    there, up = first.projection.to_pixels(*other.projection.to_sky(x, y))
    shifts = np.stack([there - x, up - y])
    if not np.isfinite(shifts).all():
        return None
    whole = np.rint(shifts[:, :1])
    if np.abs(shifts - whole).max() > _SAME_GRID:
        return None
    return int(whole[0, 0]), int(whole[1, 0])


def _vectors(ra: Array, dec: Array) -> Array:
    """(n, 3) unit vectors of positions in degrees."""
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


@lru_cache(maxsize=256)
def is_surface_brightness(unit: str) -> bool:
    """Whether a BUNIT is per solid angle, such as MJy/sr or Jy/beam, and not per pixel."""
    units = astropy("units")
    text = re.sub(r"sq_?(arcsec|arcmin|deg)", r"\1^2", unit.strip())
    if _SOLID_ANGLE.search(text.lower()):
        return True
    for form in _UNIT_FORMATS:
        found = units.Unit(text, format=form, parse_strict="silent")
        if not isinstance(found, units.UnrecognizedUnit):
            return _per_solid_angle(found)
    return False


def _per_solid_angle(unit: Any) -> bool:
    """A brightness temperature is one for each direction as well."""
    plain = getattr(unit, "physical_unit", unit).decompose()
    powers = {base.name: power for base, power in zip(plain.bases, plain.powers, strict=True)}
    return powers.get("rad", 0) < 0 or powers.get("beam", 0) < 0 or powers.get("K") == 1
