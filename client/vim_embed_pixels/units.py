"""Limits with units, such as `22mag/arcsec2` or `500nJy`, in the unit of an image's fluxes.

astropy converts. A flux's unit is what `BUNIT` says, or follows from the zero point that a user
gives: the AB magnitude of a flux of 1.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from vim_embed_pixels.errors import UnusableImage, UnusableOptions

_NUMBER = re.compile(r"\s*([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*(.*?)\s*")
_MAGNITUDES = ("mag", "ABmag")


@dataclass(frozen=True)
class Limit:
    """A number and its unit: a flux, or one for an area of the sky; AB magnitudes are such too."""

    number: float
    unit: str

    @classmethod
    def of(cls, text: str) -> Limit:
        """Raises ValueError where there is no number at the beginning."""
        found = _NUMBER.fullmatch(text)
        if found is None:
            raise ValueError(text)
        return cls(float(found[1]), found[2])

    @property
    def magnitude(self) -> bool:
        return self.unit.partition("/")[0].strip() in _MAGNITUDES


def pair(low: str, high: str) -> tuple[float | str, float | str]:
    """Two limits as numbers where they have no unit, else as texts with their units.

    A number without a unit has that of the other; beside a magnitude only 0 has one. Raises
    ValueError.
    """
    limits = Limit.of(low), Limit.of(high)
    unit = next((one.unit for one in limits if one.unit and not one.magnitude), "")
    magnitudes = any(one.magnitude for one in limits)
    return _told(limits[0], unit, magnitudes), _told(limits[1], unit, magnitudes)


def _told(one: Limit, unit: str, magnitudes: bool) -> float | str:
    if one.unit:
        _check_unit(one)
        return f"{one.number!r}{one.unit}"
    if one.number == 0 or not (unit or magnitudes):
        return one.number
    if not unit:
        raise ValueError(one.number)
    return f"{one.number!r}{unit}"


def in_flux(text: str, image: Calibration) -> float:
    """A limit in the unit of an image's fluxes. Raises UnusableImage or UnusableOptions."""
    units = _library()
    one = image.of_one()
    wanted = _quantity(Limit.of(text))
    per_area = wanted.unit.is_equivalent(units.Jy / units.sr)
    if per_area != one.unit.is_equivalent(units.Jy / units.sr):
        area = image.pixel_area() * units.sr
        wanted = wanted * area if per_area else wanted / area
    return float((wanted / one).to_value(units.one))


@dataclass(frozen=True)
class Calibration:
    """What a flux of an image is. header: of its HDU, or None where there is none.

    zero_point: AB magnitude of a flux of 1, in place of what the header says.
    """

    header: Any
    zero_point: float | None

    def of_one(self) -> Any:
        """A flux of 1, in Jy or Jy/sr. Raises UnusableImage."""
        units = _library()
        if self.zero_point is not None:
            return (self.zero_point * units.ABmag).to(units.Jy)
        told = "" if self.header is None else str(self.header.get("BUNIT", "")).strip()
        if not told:
            raise UnusableImage(
                "nothing says what unit its fluxes have: give --zero-point, the AB magnitude of a "
                "flux of 1, or --limits without units"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            unit = units.Unit(told, parse_strict="silent")
        for plain in (units.Jy, units.Jy / units.sr):
            try:
                return (1 * unit).to(plain, units.zero_point_flux((0 * units.ABmag).to(units.Jy)))
            except (units.UnitsError, TypeError, ValueError):
                continue
        raise UnusableImage(
            f"its fluxes are in {told}, which are no Jy: give --zero-point, the AB magnitude of one"
        )

    def pixel_area(self) -> float:
        """Of the sky, in steradians. Raises UnusableImage."""
        from astropy.wcs import WCS
        from astropy.wcs.utils import proj_plane_pixel_area

        units = _library()
        if self.header is None:
            raise UnusableImage("--limits for an area of the sky need a WCS, which it has not")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wcs = WCS(self.header)
            if not wcs.has_celestial:
                raise UnusableImage("--limits for an area of the sky need a WCS, which it has not")
            return float((proj_plane_pixel_area(wcs.celestial) * units.deg**2).to_value(units.sr))


def _quantity(one: Limit) -> Any:
    """In Jy or Jy/sr."""
    units = _library()
    if not one.magnitude:
        return one.number * _unit(one.unit)
    flux = (one.number * units.ABmag).to(units.Jy)
    area = one.unit.partition("/")[2]
    return flux / _unit(area) if area else flux


def _check_unit(one: Limit) -> None:
    """Raise UnusableOptions for a unit that is neither a flux nor one for an area."""
    units = _library()
    found = _quantity(one).unit
    if not any(found.is_equivalent(plain) for plain in (units.Jy, units.Jy / units.sr)):
        raise UnusableOptions(
            f"{one.unit} is no flux: use nJy, MJy/sr, mag, mag/arcsec2, or another unit of them"
        )


def _unit(text: str) -> Any:
    try:
        return _library().Unit(text)
    except ValueError:
        raise UnusableOptions(
            f"{text!r} is no unit: use nJy, MJy/sr, mag, mag/arcsec2, or another unit of them"
        ) from None


def _library() -> ModuleType:
    try:
        import astropy.units as library
    except ModuleNotFoundError:
        raise UnusableOptions('units need astropy: pip install "vim-embed[astro]"') from None
    found: ModuleType = library
    return found
