"""Cards of FITS headers that describe pixels, as far as they are true of a cut-out as well.

A cut-out conserves the flux of pixels that are fluxes, and the values of those that are surface
brightnesses. So their unit, their zero point and their exposure stay; what holds for pixels of one
area, or for the numbers in the file alone, such as scales, saturation and checksums, does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Cards = Mapping[str, tuple[Any, str]]  # a value and a comment

_UNIT = ("BUNIT",)
_ZERO_POINT = (
    "MAGZERO", "MAGZPT", "MAGZP", "MAGZEROP", "MAGZRP", "ZEROPT", "ZEROPNT", "ZEROPOIN", "ZP",
    "ZPT", "ZP_AB", "ZPAB", "ABZP", "ABMAGZP", "PHOTZP", "PHOTZPT", "PHOT_ZP", "PHOTFLAM",
    "PHOTFNU", "PHOTPLAM", "PHOTBW", "PHOTMODE", "PHOTSYS", "FLUXMAG0", "FLUXCAL", "NMGY",
    "FPA.ZP",
)  # fmt: skip
_BAND = (
    "FILTER", "FILTER1", "FILTER2", "FILTNAM1", "FILTNAM2", "PUPIL", "BAND", "WAVELEN", "CHANNEL",
    "TELESCOP", "INSTRUME", "DETECTOR", "SURVEY",
)  # fmt: skip
_EXPOSURE = (
    "EXPTIME", "TEXPTIME", "EXPOSURE", "XPOSURE", "EFFEXPTM", "TOTEXPT", "GAIN", "EGAIN", "CCDGAIN",
)  # fmt: skip
_BEAM = ("BMAJ", "BMIN", "BPA", "RESTFRQ", "RESTFREQ", "RESTWAV", "SPECSYS")
_KEPT = (*_UNIT, *_ZERO_POINT, *_BAND, *_EXPOSURE, *_BEAM)
# True of pixels of one area.
_OF_AREA = ("PIXAR_SR", "PIXAR_A2", "PHOTMJSR", "PHOTUJA2")


def described(hdu: Any, primary: Any) -> Cards:
    """The cards that describe the pixels of an image, of its header or of the file's first one."""
    found: dict[str, tuple[Any, str]] = {}
    for key in (*_KEPT, *_OF_AREA):
        for header in (hdu, primary):
            value = header.get(key)
            if isinstance(value, bool | int | float | str) and str(value).strip():
                found[key] = value, header.comments[key]
                break
    return found


def of_planes(header: Any, planes: int) -> Cards:
    """Those that say what the planes of a cube are: colours, bands, or a spectral axis."""
    keys = ["BANDS", *(f"BAND{place}" for place in range(planes + 1))]
    found = {key: (header[key], header.comments[key]) for key in keys if key in header}
    if "CTYPE3" not in header:
        return found
    axis = [key for key in ("CTYPE3", "CUNIT3", "CRVAL3", "CRPIX3") if key in header]
    found |= {key: (header[key], header.comments[key]) for key in axis}
    step = header.get("CD3_3", header.get("CDELT3", 1.0) * header.get("PC3_3", 1.0))
    return found | {"CD3_3": (step, "")}


def of_bands(names: Sequence[str]) -> Cards:
    """Those of planes that were files or HDUs: their names, and that three are colours."""
    told = {f"BAND{place}": (name, "") for place, name in enumerate(names)}
    return told | {"CTYPE3": ("RGB", "red, green and blue")} if len(names) == 3 else told


def common(cards: Iterable[Cards]) -> Cards:
    """Those that all have, with one value."""
    first, *others = cards
    return {
        key: told
        for key, told in first.items()
        if all(key in one and one[key][0] == told[0] for one in others)
    }


def without_area(cards: Cards) -> Cards:
    """Those that are true of pixels of any area."""
    return {key: told for key, told in cards.items() if key not in _OF_AREA}
