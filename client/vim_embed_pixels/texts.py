"""What options for fluxes look like as text, on a command line or in a query."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeVar

from vim_embed_pixels import units
from vim_embed_pixels.errors import UnusableOptions
from vim_embed_pixels.fits import ALL_HDUS, HduName
from vim_embed_pixels.stretch import Limits

T = TypeVar("T")


def several(
    text: str, kind: Callable[[str], T], form: str, count: int | None = None
) -> tuple[T, ...]:
    """A value split at its commas. form: an example, for the message. Raises UnusableOptions."""
    try:
        found = tuple(map(kind, text.split(",")))
    except UnusableOptions:  # which says more
        raise
    except ValueError:
        found = ()
    if not found or (count is not None and len(found) != count):
        raise UnusableOptions(f"{text!r} is not of the form {form}")
    return found


def bands(text: str) -> tuple[int | str, ...]:
    return several(text, _band, "3,1,0 or z,r,g")


def percentiles(text: str) -> tuple[float, float]:
    low, high = several(text, float, "1,99", 2)
    return low, high


def limits(text: str) -> Limits | Literal["zscale"]:
    if text == "zscale":
        return "zscale"
    return several(text, _pair, "-0.06:1.5 or 0:22mag (one, or three), nor zscale")


def blank(text: str) -> float | Literal["sky"]:
    if text == "sky":
        return "sky"
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UnusableOptions(f"{text!r} is neither a finite number nor sky")
    return number


def hdus(text: str) -> tuple[HduName, ...]:
    found = several(text, _hdu, "1, SCI, SCI:2, Z,R,G or all")
    return ALL_HDUS if [str(name).lower() for name in found] == ["all"] else found


def _pair(text: str) -> tuple[float | str, float | str]:
    low, high = text.split(":")
    return units.pair(low, high)


def _band(text: str) -> int | str:
    text = text.strip()
    if text.lstrip("-").isdigit():
        return int(text)
    if not text.replace("-", "").isalnum():
        raise ValueError
    return text


def _hdu(text: str) -> HduName:
    text = text.strip()
    if not text:
        raise ValueError
    return int(text) if text.lstrip("-").isdigit() else text


PARSERS: dict[str, Callable[[str], Any]] = {
    "bands": bands, "percentiles": percentiles, "limits": limits, "blank": blank, "hdu": hdus,
}  # fmt: skip
