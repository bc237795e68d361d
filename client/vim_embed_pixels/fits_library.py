"""FITS files as astropy opens them, with what it lacks: bounds of what headers claim, and a word on
what is damaged.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from vim_embed_pixels.errors import UnusableOptions, described
from vim_embed_pixels.tiles import check_tiles

_MOST_COUNTED = 999  # FITS Standard 4.0, sections 4.4.1.1 and 7.3.1
_COUNTED = {"NAXIS": "axes", "ZNAXIS": "axes", "TFIELDS": "columns"}

BLOCK = 2880
_PADDING = b"\0 "  # what may lie behind the last HDU and be no image


def library() -> Any:
    """astropy.io.fits. Raises UnusableOptions where it is not installed."""
    try:
        from astropy.io import fits
    except ModuleNotFoundError:
        raise UnusableOptions(
            'reading FITS needs astropy: pip install "vim-embed[astro]"'
        ) from None
    _refuse_many()
    check_tiles()
    return fits


@cache
def _refuse_many() -> None:
    """Let astropy raise RuntimeError for a header of more axes or columns than the standard has.

    It asks for keys of each that NAXIS, ZNAXIS or TFIELDS claims, and of 10^12 it never comes back.
    """
    from astropy.io import fits

    base: Any = next(each for each in reversed(fits.PrimaryHDU.__mro__) if _reads_headers(each))

    # astropy asks the children of this class from the last name to the first.
    class _WithManyHDU(base):  # type: ignore[misc]
        @classmethod
        def match_header(cls, header: Any) -> bool:
            return _claimed(header) is not None

        def __init__(self, data: Any = None, header: Any = None, **_: object) -> None:
            raise RuntimeError(f"its header claims {_claimed(header)}")

    fits.register_hdu(_WithManyHDU)


def _claimed(header: Any) -> str | None:
    """Of what a header claims too many, and how many."""
    for key, what in _COUNTED.items():
        count = header.get(key, 0)
        if isinstance(count, int | float) and count > _MOST_COUNTED:
            return f"{count} {what}"
    return None


def _reads_headers(kind: type) -> bool:
    return hasattr(kind, "match_header")


def sound_hdus(file: Any) -> tuple[list[Any], str]:
    """The HDUs up to the first that is damaged, and what is wrong with that one, or nothing.

    astropy goes round in circles where an HDU claims a negative size, so that each must begin
    behind the one before it.
    """
    found: list[Any] = []
    end = -1
    try:
        for hdu in file:
            if type(hdu).__name__.startswith("_"):  # astropy's, for what is no HDU
                return found, f"its HDU {len(found)} does not begin as one of standard FITS"
            begin = (hdu.fileinfo() or {}).get("datLoc")
            if begin is not None and begin <= end:
                return found, f"its HDU {len(found)} lies before the one before it"
            end = end if begin is None else begin
            found.append(hdu)
    except Exception as error:  # astropy raises errors of every kind
        if not found:
            raise
        if not _damage_behind(found):  # spaces, which astropy takes for a header
            return found, ""
        return found, f"its HDU {len(found)} cannot be read ({described(error)})"
    damage = _damage_behind(found)  # then the data of the last have shifted, perhaps
    return found[: len(found) - bool(damage)], damage


def _damage_behind(hdus: Sequence[Any]) -> str:
    """What is wrong with the bytes behind the data of the last HDU, if they are more than padding;
    or nothing."""
    place = hdus[-1].fileinfo() if hdus else None
    if not place or place.get("datLoc") is None:
        return ""
    end = place["datLoc"] + getattr(hdus[-1], "_bintable", hdus[-1]).size
    place["file"].seek(end)
    rest = place["file"].read()
    if rest and (end + len(rest)) % BLOCK:
        return (
            f"its {end + len(rest):,} bytes are no whole blocks of {BLOCK:,}: some were lost or "
            "added on its way, as by a transfer as text"
        )
    behind = rest[-end % BLOCK :]
    return f"{len(behind):,} bytes behind its HDUs begin no other" if behind.strip(_PADDING) else ""
