"""Fluxes to RGB pixels: three bands chosen, stretched to 0..255.

The numbers are those of platonic-universe's conversion, so that an image embedded from FITS or
from its data sets is the image that it embeds itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from vim_embed_client.errors import ConfigurationError, InputError
from vim_embed_client.formats import Array

StretchName = Literal["asinh", "linear"]
Limits = tuple[tuple[float, float], ...]


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """How fluxes become RGB.

    bands: places in a cube of those shown as red, green and blue, or of one shown as grey; None
        takes cubes of three, or of one, as they are.
    percentiles: fluxes at these become 0 and 1 before the stretch, in each image by itself, over
        its three bands together, or in each band by itself with `per_band`.
    limits: such fluxes for each band in place of percentiles.
    kind: `asinh` takes arcsinh and then scales to the image's own least and greatest value;
        `linear` cuts off what is beyond 0 and 1. None is linear with limits, else asinh.
    blank: what NaN and infinite fluxes are replaced by; None refuses such images.
    """

    bands: tuple[int, ...] | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    limits: Limits | None = None
    kind: StretchName | None = None
    per_band: bool = False
    blank: float | None = None

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise ConfigurationError(f"percentiles must rise within 0 to 100, got {low:g},{high:g}")
        if self.bands is not None and len(self.bands) not in (1, 3):
            raise ConfigurationError(
                f"one band (grey) or three (red, green, blue) are needed, got {len(self.bands)}"
            )
        if self.limits is not None and len(self.limits) not in (1, 3):
            raise ConfigurationError(
                f"limits are for one band or for three, got {len(self.limits)} pairs"
            )
        for low, high in self.limits or ():
            if not low < high:
                raise ConfigurationError(f"limits must rise, got {low:g},{high:g}")


# Places of the bands in platonic-universe's cubes and its limits, here in the order R, G, B:
# hsc grizy and legacysurvey griz as z, r, g; jwst as f444w, f277w, f090w.
SURVEYS = {
    "hsc": Stretch(
        bands=(3, 1, 0),
        limits=(
            (-0.057812731899321075, 1.508440258502958),
            (-0.026543444022536278, 0.7422214198112442),
            (-0.01787552610039711, 0.35058236330747405),
        ),
    ),
    "jwst": Stretch(
        bands=(6, 4, 0),
        limits=(
            (-0.0294732004404068, 4.091785907745361),
            (-0.017583513632416725, 5.846490383148193),
            (-0.07078961282968521, 2.4474363327026367),
        ),
    ),
    "legacysurvey": Stretch(
        bands=(3, 1, 0),
        limits=(
            (-0.009074461692944168, 0.042978320308029616),
            (-0.003597061627078801, 0.021863272413611412),
            (-0.0023022370878607035, 0.009575212374329567),
        ),
    ),
}


def survey_stretch(survey: str | None, **given: Any) -> Stretch:
    """The stretch of a survey of platonic-universe, or the plain one, with what a user gives."""
    chosen = {name: value for name, value in given.items() if value is not None}
    start = SURVEYS[survey] if survey else Stretch()
    if "percentiles" in chosen and "limits" not in chosen:
        start = replace(start, limits=None)
    return replace(start, **chosen)


def to_rgb(flux: Array, how: Stretch) -> Array:
    """(H, W) or (bands, H, W) fluxes as (3, H, W) uint8. Raises InputError."""
    rgb = _finite(_select(np.asarray(flux, np.float32), how.bands), how.blank)
    low, width = _range(rgb, how)
    if not np.all(width > 0):
        raise InputError("it is too flat to stretch: its lower and upper percentile are the same")
    scaled = (rgb - low) / width
    if (how.kind or ("linear" if how.limits else "asinh")) == "linear":
        scaled = scaled.clip(0, 1)
    else:
        scaled = np.arcsinh(scaled)
        axes = (1, 2) if how.per_band else None
        least, most = (f(axis=axes, keepdims=True) for f in (scaled.min, scaled.max))
        scaled = (scaled - least) / (most - least)
    return (scaled * 255).astype(np.uint8)


def select_places(bands: Sequence[int] | None, count: int) -> Sequence[int]:
    """Places of the red, green and blue band in a cube of `count`. Raises InputError."""
    if bands is None:
        if count not in (1, 3):
            raise InputError(f"it has {count} bands: choose one or three with --bands R,G,B")
        bands = range(count)
    outside = [band for band in bands if not -count <= band < count]
    if outside:
        raise InputError(f"it has {count} bands, numbered from 0, and none is {outside[0]}")
    return list(bands) * (3 // len(bands))


def _select(flux: Array, bands: tuple[int, ...] | None) -> Array:
    if flux.ndim == 2:
        return np.stack([flux, flux, flux])
    if flux.ndim != 3 or flux.size == 0:
        raise InputError(f"its fluxes have shape {flux.shape}: expected (bands, H, W) or (H, W)")
    return flux[list(select_places(bands, len(flux)))]


def _finite(rgb: Array, blank: float | None) -> Array:
    finite = np.isfinite(rgb)
    if finite.all():
        return rgb
    if blank is None:
        raise InputError(
            f"{rgb.size - int(finite.sum())} fluxes are NaN or infinite: give --blank VALUE to "
            "replace them"
        )
    return np.where(finite, rgb, np.float32(blank))


def _range(rgb: Array, how: Stretch) -> tuple[Array, Array]:
    """The flux that becomes 0, and how far above it 1 is: float32, of shape (3 or 1, 1, 1)."""
    if how.limits is not None:
        low, high = np.array(how.limits, np.float64).T.reshape(2, -1, 1, 1)
        return low.astype(np.float32), (high - low).astype(np.float32)
    axes = (1, 2) if how.per_band else None
    low, high = (np.percentile(rgb, p, axis=axes, keepdims=True) for p in how.percentiles)
    return low, high - low
