"""Fluxes to pixels: as many bands chosen as a model takes, stretched to 0..255.

The numbers are those of platonic-universe's conversion, so that an image embedded from FITS or
from its data sets is the image that it embeds itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vim_embed_pixels import curves, units
from vim_embed_pixels.errors import UnusableImage, UnusableOptions

Array = NDArray[Any]
StretchName = Literal[
    "linear", "sqrt", "log", "asinh", "lupton", "zscale", "platonic", "platonic@head"
]
STRETCHES: tuple[StretchName, ...] = get_args(StretchName)
Limits = tuple[tuple[Any, Any], ...]  # numbers, or texts with units

# Of float32's rounding against the range that becomes 0 to 1: a sixteenth of a grey level.
_ROUNDING = 2.0**-12
_SINGLE = ("float16", "float32", "int8", "uint8", "int16", "uint16")


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """How fluxes become RGB, or the bands of a model that takes others.

    survey: the name under which bands, limits, kind and zoom were looked up, if they were.
    channels: bands that the model takes. bands: places or names in a cube of these, for RGB of
        red, green and blue, or of one shown as grey; None takes cubes of as many as they are.
    percentiles: fluxes at these become 0 and 1 before the stretch, in each image by itself, over
        the finite fluxes of its three bands together, or of each by itself with `per_band`.
    limits: such fluxes for each band in place of percentiles; `zscale`: those of IRAF's zscale. A
        limit with a unit is text, such as `22mag/arcsec2`, until `calibrated` makes a number of it.
    zero_point: AB magnitude of a flux of 1, for limits with units; None: as the file's BUNIT.
    kind: `platonic` takes arcsinh and then scales to the image's own least and greatest value.
        Every other one cuts off what is beyond 0 and 1: `linear`; `platonic@head`, which is
        arcsinh(20 x) / arcsinh(20); `asinh`, `sqrt` and `log`, as astropy's stretches; `lupton`,
        which keeps colours, as astropy's make_lupton_rgb; `zscale`, linear with limits of zscale.
        None is linear with limits, else platonic.
    softening: of `asinh` (astropy's a, by default 0.1) and of `lupton` (Q, by default 8).
    blank: what NaN and infinite fluxes are replaced by: a number, or `sky`, the median of the
        band's finite fluxes. None refuses such images.
    zoom: (half, side): the middle 2 half by 2 half pixels are enlarged to side by side.
    """

    survey: str | None = None
    channels: int = 3
    bands: tuple[int | str, ...] | None = None
    percentiles: tuple[float, float] = (1.0, 99.0)
    limits: Limits | Literal["zscale"] | None = None
    zero_point: float | None = None
    kind: StretchName | None = None
    softening: float | None = None
    per_band: bool = False
    blank: float | Literal["sky"] | None = None
    zoom: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        low, high = self.percentiles
        if not 0 <= low < high <= 100:
            raise UnusableOptions(f"percentiles must rise within 0 to 100, got {low:g},{high:g}")
        self._check_limits()
        self._check_kind()

    def _check_limits(self) -> None:
        for low, high in self.fixed or ():
            numbers = not isinstance(low, str) and not isinstance(high, str)
            if numbers and not low < high:
                raise UnusableOptions(f"limits must rise, got {low:g},{high:g}")
        if self.zero_point is not None and not np.isfinite(self.zero_point):
            raise UnusableOptions(f"the zero point is a magnitude, got {self.zero_point:g}")

    def _check_kind(self) -> None:
        if self.kind not in (None, *STRETCHES):
            raise UnusableOptions(
                f"there is no stretch {self.kind!r}: use one of {', '.join(STRETCHES)}"
            )
        if self.kind == "zscale" and self.fixed:
            raise UnusableOptions("zscale finds limits by itself: leave --limits out")
        if self.kind == "lupton" and (self.per_band or len(self.fixed or ()) > 1):
            raise UnusableOptions(
                "lupton keeps the colours, and so has one range for its three bands: give it one "
                "pair of --limits, or --percentiles without --per-band"
            )
        if self.softening is None:
            return
        if self.kind not in ("asinh", "lupton"):
            raise UnusableOptions("--softening is for --stretch asinh and lupton alone")
        if not 0 < self.softening < np.inf:
            raise UnusableOptions(f"the softening must be above 0, got {self.softening:g}")

    def for_channels(self, channels: int) -> Stretch:
        """The same for a model of so many bands. Raises UnusableOptions where it cannot be."""
        rgb = channels == 3
        if self.bands is not None and len(self.bands) not in ((1, 3) if rgb else (channels,)):
            needed = (
                "one band (grey) or three (red, green, blue) are"
                if rgb
                else (f"the model takes {channels} bands, so that as many are")
            )
            raise UnusableOptions(f"{needed} needed, got {len(self.bands)}: see --bands")
        if self.fixed is not None and len(self.fixed) not in (1, channels):
            raise UnusableOptions(
                f"limits are for one band or for {'three' if rgb else channels}, got "
                f"{len(self.fixed)} pairs"
            )
        if self.kind == "lupton" and not rgb:
            raise UnusableOptions(f"lupton is for three bands, and the model takes {channels}")
        return replace(self, channels=channels)

    def by_number(self, names: Sequence[str]) -> Stretch:
        """The same with the places of bands that are given by name. Raises UnusableImage.

        names: of an image's bands, in their order; empty where it does not name them.
        """
        wanted = [band for band in self.bands or () if isinstance(band, str)]
        if not wanted:
            return self
        known = {name.lower(): place for place, name in enumerate(names)}
        missing = [name for name in wanted if name.lower() not in known]
        if missing and not names:
            raise UnusableImage("its bands have no names: choose them by number, from 0")
        if missing:
            raise UnusableImage(f"it has no band {missing[0]}: it has {', '.join(names)}")
        places = [b if isinstance(b, int) else known[b.lower()] for b in self.bands or ()]
        return replace(self, bands=tuple(places))

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Stretch:
        """What `dataclasses.asdict` made of one, also after a way through JSON."""
        names = {one.name for one in fields(cls)}
        return cls(**{
            name: _tuples(value)
            for name, value in told.items()
            if name in names and value is not None
        })  # fmt: skip

    def calibrated(self, header: Any) -> Stretch:
        """The same with limits in the unit of an image's fluxes. Raises UnusableImage.

        header: of the image's HDU, or None where it has none.
        """
        if not self.has_units:
            return self
        image = units.Calibration(header, self.zero_point)
        limits: Any = tuple(
            tuple(units.in_flux(one, image) if isinstance(one, str) else one for one in pair)
            for pair in self.fixed or ()
        )
        try:
            return replace(self, limits=limits)
        except UnusableOptions as error:
            raise UnusableImage(error.message) from None

    def of_bands(self, calibrated: Sequence[Stretch]) -> Stretch:
        """The same with the limits of images that are a band each, calibrated by themselves."""
        if not self.has_units:
            return self
        pairs = [one.fixed or () for one in calibrated]
        limits = [own[place] if len(own) > 1 else own[0] for place, own in enumerate(pairs)]
        return replace(self, limits=tuple(limits))

    @property
    def has_units(self) -> bool:
        """Whether a limit is text with a unit."""
        return any(isinstance(one, str) for pair in self.fixed or () for one in pair)

    @property
    def fixed(self) -> Limits | None:
        """The limits that are not found in the image."""
        return None if self.limits == "zscale" else self.limits

    @property
    def zscale(self) -> bool:
        """Whether limits are those of zscale."""
        return self.limits == "zscale" or self.kind == "zscale"

    @property
    def shape(self) -> StretchName:
        """The kind that is meant."""
        return self.kind or ("linear" if self.limits else "platonic")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def to_rgb(flux: Array, how: Stretch) -> Array:
    """(H, W) or (bands, H, W) fluxes as (channels, H, W) uint8. Raises UnusableImage."""
    how = how.calibrated(None)
    with np.errstate(all="ignore"):  # what overflows is looked for, and named
        rgb = _selected(np.asarray(flux), how)
        finite = np.isfinite(rgb)
        rgb = _filled(rgb, finite, how.blank)
        if how.zoom is not None:
            rgb = _zoomed(rgb, *how.zoom)
            finite = np.ones(rgb.shape, bool)
        pixels = _bytes(rgb, finite, how)
    if (pixels == pixels[:, :1, :1]).all():
        where = "it is constant, or beyond the limits" if how.fixed else "it is all but constant"
        raise UnusableImage(f"it is too flat to show: every pixel has one colour ({where})")
    return pixels


def blank_share(flux: Array, how: Stretch) -> float:
    """Of (H, W) or (bands, H, W) fluxes, the share of pixels not finite in a band that is shown.

    Raises UnusableImage.
    """
    return float((~np.isfinite(_selected(np.asarray(flux), how))).any(axis=0).mean())


def cropped(array: Array, side: int | None) -> Array:
    """The middle `side` by `side` pixels of (…, H, W). Raises UnusableImage where there are less.

    Of an odd number of pixels left over, the last row or column is one more.
    """
    if side is None:
        return array
    height, width = array.shape[-2:]
    if min(height, width) < side:
        raise UnusableImage(f"it has {height}×{width} pixels, fewer than --crop {side} takes")
    top, left = (height - side) // 2, (width - side) // 2
    return array[..., top : top + side, left : left + side]


def select_places(
    bands: Sequence[int | str] | None, count: int, channels: int = 3
) -> Sequence[int]:
    """Places in a cube of `count` of the bands that a model takes. Raises UnusableImage.

    For a model of three they are red, green and blue; one alone is all of them, and so grey.
    """
    taken = (1, 3) if channels == 3 else (channels,)
    if len(range(count) if bands is None else bands) not in taken:
        wanted = (
            "one or three with --bands R,G,B"
            if channels == 3
            else (f"the {channels} that the model takes with --bands")
        )
        raise UnusableImage(f"it has {count} bands: choose {wanted}")
    places = [band for band in (range(count) if bands is None else bands) if isinstance(band, int)]
    if len(places) < len(bands or ()):
        raise UnusableImage("its bands have no names: choose them by number, from 0")
    outside = [band for band in places if not -count <= band < count]
    if outside:
        raise UnusableImage(
            f"it has {count} band{'s' * (count > 1)}, numbered from 0, and none is {outside[0]}: "
            "choose with --bands"
        )
    return places * (channels // len(places))


def check_numbers(dtype: np.dtype[Any]) -> None:
    """Raise UnusableImage for an array of anything but whole or floating-point numbers."""
    if dtype.kind not in "iuf":
        raise UnusableImage(f"it holds {dtype}, which are no fluxes or pixels")


def _selected(flux: Array, how: Stretch) -> Array:
    """The bands as float32, or as float64 where they are more than float32 may hold."""
    check_numbers(flux.dtype)
    bands = how.bands
    if flux.ndim == 2 and flux.size:
        flux = flux[None]
        bands = None if how.survey else bands  # a survey's are those of its cubes
    if flux.ndim != 3 or flux.size == 0:
        raise UnusableImage(f"its fluxes have shape {flux.shape}: expected (bands, H, W) or (H, W)")
    chosen = flux[list(select_places(bands, len(flux), how.channels))]
    return chosen.astype(np.float32 if flux.dtype.name in _SINGLE else np.float64)


def _filled(rgb: Array, finite: Array, blank: float | str | None) -> Array:
    if finite.all():
        return rgb
    if not finite.any():
        raise UnusableImage("all its fluxes are NaN or infinite")
    if blank is None:
        raise UnusableImage(
            f"in {int((~finite).any(axis=0).sum())} pixels fluxes are NaN or infinite: give "
            "--blank sky, or --blank VALUE, to replace them"
        )
    if blank != "sky":
        return np.where(finite, rgb, rgb.dtype.type(blank))
    if not finite.any(axis=(1, 2)).all():
        raise UnusableImage("all fluxes of one of its bands are NaN or infinite")
    sky = [np.median(band[good]) for band, good in zip(rgb, finite, strict=True)]
    return np.where(finite, rgb, np.array(sky, rgb.dtype)[:, None, None])


def _zoomed(rgb: Array, half: int, side: int) -> Array:
    """The middle, enlarged by linear interpolation as platonic-universe's head does it."""
    try:
        from scipy.ndimage import zoom
    except ModuleNotFoundError:
        raise UnusableOptions(
            'this survey\'s zoom needs scipy: pip install "vim-embed[astro]"'
        ) from None
    rows, columns = (
        slice(max(0, length // 2 - half), min(length, length // 2 + half))
        for length in rgb.shape[1:]
    )
    middle = rgb[:, rows, columns].transpose(1, 2, 0)
    factor = side / max(middle.shape[:2])
    enlarged: Array = zoom(middle, (factor, factor, 1), order=1)
    return enlarged.transpose(2, 0, 1)


def _bytes(rgb: Array, finite: Array, how: Stretch) -> Array:
    rgb, low, width = _within_range(rgb, finite, how)
    if how.shape == "lupton":
        return curves.lupton(rgb, low.item(), width.item(), how.softening)
    unit = _stretched((rgb - low) / width, finite, how)
    pixels: Array = (unit * 255).astype(np.uint8)
    return pixels


def _within_range(rgb: Array, finite: Array, how: Stretch) -> tuple[Array, Array, Array]:
    """The fluxes, in float32 as platonic-universe has them where that will do, and their range."""
    low, width = _range(rgb, finite, how)
    if rgb.dtype == np.float64:
        single = rgb.astype(np.float32)
        if np.abs(single - rgb).max() <= _ROUNDING * width.min():
            rgb = single
            low, width = _range(rgb, finite, how)
    if not np.isfinite(width).all():
        raise UnusableImage("its fluxes span an infinite range: give --limits, or divide them")
    if not (width > 0).all():
        raise UnusableImage(
            "it is too flat to stretch: its lower and upper percentile are the same"
        )
    return rgb, low, width


def _range(rgb: Array, finite: Array, how: Stretch) -> tuple[Array, Array]:
    """The flux that becomes 0, and how far above it 1 is: of shape (3 or 1, 1, 1)."""
    if how.fixed is not None:
        low, high = np.array(how.fixed, np.float64).T.reshape(2, -1, 1, 1)
        return low.astype(rgb.dtype), (high - low).astype(rgb.dtype)
    if how.zscale:
        seen = np.where(finite, rgb, np.nan)
        found = [curves.zscale_limits(part) for part in (seen if how.per_band else (seen,))]
        low, high = np.array(found, rgb.dtype).T.reshape(2, -1, 1, 1)
        return low, high - low
    low, high = (_percentile(rgb, finite, at, per_band=how.per_band) for at in how.percentiles)
    return low, high - low


def _percentile(rgb: Array, finite: Array, at: float, *, per_band: bool) -> Array:
    if finite.all():
        axes = (1, 2) if per_band else None
        whole: Array = np.percentile(rgb, at, axis=axes, keepdims=True)
        return whole
    parts = zip(rgb, finite, strict=True) if per_band else ((rgb, finite),)
    found = [np.percentile(part[good], at) for part, good in parts if good.any()]
    if per_band and len(found) < len(rgb):
        raise UnusableImage("all fluxes of one of its bands are NaN or infinite")
    return np.array(found, rgb.dtype).reshape(-1, 1, 1)


def _stretched(scaled: Array, finite: Array, how: Stretch) -> Array:
    """Into 0 to 1; beyond it lies nothing, or what is cut off."""
    unit: Array = scaled
    if how.shape == "platonic":
        unit = _own_range(np.arcsinh(scaled), finite, how)
    elif how.shape == "platonic@head":
        unit = np.arcsinh(20 * scaled) / np.arcsinh(20)
    elif how.shape in curves.NAMES:
        unit = curves.bent(scaled, how.shape, how.softening)
    return np.clip(unit, 0, 1)


def _own_range(scaled: Array, finite: Array, how: Stretch) -> Array:
    """From the image's least to its greatest value."""
    axes = (1, 2) if how.per_band else None
    # A value put in for blanks must not take grey levels from the fluxes.
    least = scaled.min(axis=axes, keepdims=True, where=finite, initial=np.inf)
    most = scaled.max(axis=axes, keepdims=True, where=finite, initial=-np.inf)
    unit: Array = (scaled - least) / (most - least)
    return unit
