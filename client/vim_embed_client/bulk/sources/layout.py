"""What the axes of an array mean: galaxies, bands, rows and columns of pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vim_embed_client.bulk.sources.faults import named
from vim_embed_client.bulk.sources.options import FLUX_OPTIONS, ReadOptions
from vim_embed_client.bulk.sources.reader import Entry, Item, Skipped
from vim_embed_client.errors import InputError
from vim_embed_client.formats import Array
from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.no_data import remark_on_zeros
from vim_embed_pixels.stretch import Stretch, check_numbers, cropped, select_places, to_rgb


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How an array becomes rows.

    rows: galaxies along the first axis, or None where the whole array is one. fluxes: whether
    they are stretched; else they are pixels. options: those that have an effect on it.
    """

    rows: int | None
    fluxes: bool
    options: frozenset[str]


def layout_of(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    options: ReadOptions,
    *,
    always_fluxes: bool = False,
    are_bands: bool = False,
) -> Layout:
    """How an array of this shape and dtype is taken. Raises InputError where that is not clear.

    always_fluxes: as in FITS. are_bands: whether the file says that the first of three axes
    counts bands, and not galaxies.
    """
    with named("it cannot be shown"):
        return _layout_of(shape, dtype, options, always_fluxes, are_bands)


def _layout_of(
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    options: ReadOptions,
    always_fluxes: bool,
    are_bands: bool,
) -> Layout:
    check_numbers(dtype)
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise InputError(
            f"its shape is {shape}: expected (3, H, W), (bands, H, W) or (H, W), or (N, …) of them"
        )
    stacked = options.stack and len(shape) == 3
    rows = shape[0] if stacked or len(shape) == 4 else None
    one = shape if rows is None else shape[1:]
    fluxes = always_fluxes or _are_fluxes(one, dtype, options)
    if fluxes and len(shape) == 3 and not stacked and not are_bands:
        _check_bands(shape, options)
    if fluxes and len(one) == 3:
        select_places(options.stretch.bands, one[0], options.channels)
    if not fluxes and dtype != np.uint8 and dtype.kind in "iu":
        raise InputError(
            f"its {dtype} numbers are no pixels: give --percentiles 1,99 if they are fluxes, or "
            "store uint8"
        )
    return Layout(rows=rows, fluxes=fluxes, options=_effective(shape, one, dtype, fluxes))


def _are_fluxes(one: tuple[int, ...], dtype: np.dtype[Any], options: ReadOptions) -> bool:
    in_colour = len(one) == 3 and options.channels in (one[0], one[2])
    if dtype == np.uint8:
        return not in_colour and len(one) != 2
    return options.fluxes or not in_colour


def _check_bands(shape: tuple[int, ...], options: ReadOptions) -> None:
    if options.stretch.bands is None and shape[0] != 1:
        if shape[0] == options.channels != 3:
            return
        several = "three bands (--bands 0,1,2)" if shape[0] == 3 else "bands (--bands R,G,B)"
        raise InputError(
            f"its shape is {shape}: say whether the first axis counts {several} or galaxies "
            "(--stack)"
        )


def _effective(
    shape: tuple[int, ...], one: tuple[int, ...], dtype: np.dtype[Any], fluxes: bool
) -> frozenset[str]:
    found = {"--flip", "--crop"} | ({"--stack"} if len(shape) > 2 else set())
    if fluxes:
        found |= (FLUX_OPTIONS | {"--max-blank"}) - (set() if len(one) == 3 else {"--bands"})
    elif dtype == np.uint8:
        found |= {"--resize"}
    return frozenset(found)


def array_entry(
    row_id: str, array: Array, layout: Layout, options: ReadOptions, *, upwards: bool = False
) -> Entry:
    """One row of an array. upwards: its first row of pixels is the lowest, as in FITS."""
    flip = upwards != options.flip
    if layout.fluxes:
        return flux_item(row_id, array, options.stretch, crop=options.crop, flip=flip)
    if array.ndim == 2 and options.channels in (1, 3):
        array = np.broadcast_to(array, (options.channels, *array.shape))
    return pixel_item(row_id, array, crop=options.crop, flip=flip, channels=options.channels)


@dataclass(frozen=True, slots=True)
class Shown:
    """Makes the pixels of a row when it is sent."""

    flux: Array
    stretch: Stretch
    crop: int | None
    flip: bool

    def __call__(self) -> Array:
        with named("its fluxes cannot be shown"):
            pixels = to_rgb(self.fluxes, self.stretch)
        return pixels[:, ::-1] if self.flip else pixels

    @property
    def fluxes(self) -> Array:
        """Those that are shown. Raises UnusableImage where there are fewer than the crop takes."""
        return cropped(self.flux, self.crop)

    @property
    def note(self) -> str:
        return remark_on_zeros(self.fluxes)


def flux_item(
    row_id: str, flux: Array, stretch: Stretch, *, crop: int | None = None, flip: bool = False
) -> Item:
    """Fluxes as an item that is stretched when it is sent, and then resized."""
    shown: Callable[[], Array] = Shown(flux, stretch, crop, flip)
    return Item(id=row_id, data=shown, size=flux.nbytes)


def pixel_item(
    row_id: str,
    pixels: Array,
    *,
    crop: int | None = None,
    flip: bool = False,
    channels: int = 3,
) -> Entry:
    """A (channels, H, W) or channels-last array as an item; any other shape is left out."""
    if pixels.ndim == 3 and pixels.shape[0] != channels and pixels.shape[2] == channels:
        pixels = pixels.transpose(2, 0, 1)
    if pixels.ndim != 3 or pixels.shape[0] != channels or pixels.size == 0:
        wanted = f"expected ({channels}, H, W)"
        return Skipped(id=row_id, reason=f"its shape is {pixels.shape}: {wanted}")
    try:
        pixels = cropped(pixels, crop)
    except UnusableImage as error:
        return Skipped(id=row_id, reason=error.message)
    pixels = pixels[:, ::-1] if flip else pixels
    return Item(id=row_id, data=pixels, size=pixels.nbytes)
