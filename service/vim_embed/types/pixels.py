"""Checks pixel arrays before anything is computed; the same for Python and HTTP callers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vim_embed.types.model_info import GRANULARITIES, POOLINGS, EmbedOptions, ModelInfo

PixelArray = NDArray[np.generic]

WIRE_DTYPES = ("uint8", "float16", "float32")
_MAX_STD_INVERSE = 1e-6
_MAX_NORMALISATION = 1e6


class PixelError(ValueError):
    """Pixels or options that no model could embed; the message names the fix."""


def check_pixels(array: PixelArray, info: ModelInfo, *, max_size: int) -> PixelArray:
    """Return `array` as native, C-ordered (B, 3, H, W) uint8, float16 or float32, without a copy
    where it already is.

    A single (3, H, W) image becomes a batch of one; float64 becomes float32.
    Raises PixelError for a wrong rank, channel count, size, dtype, or a non-finite value.
    """
    return check_values(check_layout(array, info, max_size=max_size))


def check_layout(array: PixelArray, info: ModelInfo, *, max_size: int) -> PixelArray:
    """`check_pixels` without a look at the values."""
    return as_wire(check_shape(array, info, max_size=max_size))


def check_shape(array: PixelArray, info: ModelInfo, *, max_size: int) -> PixelArray:
    """`check_layout` without a copy: (B, 3, H, W) in whatever order, for `as_wire` to convert."""
    array = _as_batch(array)
    rows, channels, height, width = array.shape
    wanted = info.channels
    if channels != wanted:
        hint = "; the channels are last: transpose(0, 3, 1, 2)" if width == wanted else ""
        raise PixelError(
            f"expected {wanted} channels in (B, {wanted}, H, W), got shape {array.shape}{hint}"
        )
    if rows == 0:
        raise PixelError("the batch is empty: send at least one row")
    _check_size(height, width, info, max_size)
    if array.dtype.name not in (*WIRE_DTYPES, "float64"):
        raise PixelError(
            f"dtype {array.dtype} is not taken: send uint8 for resized RGB, "
            f"or float32 or float16 for normalised pixels"
        )
    return array


def check_options(options: EmbedOptions, info: ModelInfo | None = None) -> EmbedOptions:
    """Raise PixelError for an unknown pooling, granularity, or unusable mean and std.

    info: of the model that is to answer, if that is known: it must have the pooling.
    """
    if options.pooling not in POOLINGS:
        raise PixelError(f"unknown pooling {options.pooling!r}: use one of {', '.join(POOLINGS)}")
    if info is not None and options.pooling not in info.poolings:
        raise PixelError(
            f"unknown pooling {options.pooling!r} for {info.name}: use one of "
            f"{', '.join(info.poolings)}"
        )
    if options.layers is not None and options.pooling in ("features", "tokens"):
        raise PixelError(f"{options.pooling} are of the final layer alone: leave layers out")
    if options.layers is not None and options.layers not in GRANULARITIES:
        raise PixelError(
            f"unknown layers {options.layers!r}: use one of {', '.join(GRANULARITIES)}"
        )
    for name, values in (("mean", options.mean), ("std", options.std)):
        if values is not None and info is not None and len(values) != info.channels:
            raise PixelError(f"{name} must be {info.channels} numbers for {info.name}: {values}")
        if values is not None and not np.isfinite(values).all():
            raise PixelError(f"{name} must be finite numbers, got {values}")
        if values is not None and np.abs(values).max() > _MAX_NORMALISATION:
            raise PixelError(
                f"{name} must be three numbers of at most {_MAX_NORMALISATION:g}, got {values}: "
                "it is of pixels between 0 and 1"
            )
    if options.std is not None and min(options.std) < _MAX_STD_INVERSE:
        raise PixelError(f"std must be positive, got {options.std}")
    return options


def check_bytes(array: PixelArray, options: EmbedOptions, info: ModelInfo) -> None:
    """Raise PixelError for bytes that nobody knows how to normalise, of other bands than RGB; and
    for a mean or std beside floats, which are normalised."""
    given = [name for name in ("mean", "std") if getattr(options, name) is not None]
    if given and array.dtype.kind == "f":
        raise PixelError(
            f"{' and '.join(given)} would have no effect on {array.dtype} pixels, which are "
            "normalised already: leave them out, or send uint8 pixels"
        )
    known = info.channels == 3 or (options.mean is not None and options.std is not None)
    if array.dtype == np.uint8 and not known:
        raise PixelError(
            f"{info.name} takes {info.channels} bands, whose mean and deviation are not known: "
            f"send normalised float pixels, or mean and std with the request"
        )


def _as_batch(array: PixelArray) -> PixelArray:
    if array.ndim == 3:
        return array[None]
    if array.ndim == 4:
        return array
    raise PixelError(f"expected a (B, 3, H, W) array, got {array.ndim} dimensions: {array.shape}")


def _check_size(height: int, width: int, info: ModelInfo, max_size: int) -> None:
    native = info.preprocessing.image_size
    if not info.any_size and (height, width) != (native, native):
        raise PixelError(
            f"{info.name} takes {native}×{native} pixels, got {height}×{width}: resize first"
        )
    if min(height, width) < info.min_size or max(height, width) > max_size:
        raise PixelError(
            f"{info.name} takes sides from {info.min_size} to {max_size} pixels, "
            f"got {height}×{width}: resize first ({native}×{native} is its native size)"
        )


def as_wire(array: PixelArray) -> PixelArray:
    """Native, C-ordered, and of a dtype of WIRE_DTYPES: float64 becomes float32."""
    if array.dtype.kind == "f" and array.dtype.itemsize == 8:  # of either byte order
        with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused
            array = array.astype(np.float32)
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def check_values(array: PixelArray, first: int = 0) -> PixelArray:
    """Return `array`, or raise PixelError for rows that are not finite. first: its first row."""
    if array.dtype != np.uint8:
        refuse_unless(finite_rows(array), first)
    return array


def refuse_unless(finite: NDArray[np.bool_], first: int = 0) -> None:
    """Raise PixelError where rows are not finite: (B,), the first of which is row `first`."""
    if not finite.all():
        rows = (first + np.flatnonzero(~finite)[:10]).tolist()
        raise PixelError(f"rows {rows} hold NaN or infinite pixels: mask or replace them first")


def finite_rows(array: PixelArray) -> NDArray[np.bool_]:
    """Which rows of a C-ordered float array (B, ...) are free of NaN and infinities: (B,).

    Of IEEE 754 numbers read as integers, the positive that are not finite are the largest signed
    ones, and the negative the largest unsigned ones. So two maxima tell, without an array between:
    13 GB/s on a core of a Xeon, where `np.isfinite` reads 2 (float16) and 9 (float32).
    """
    rows, size = array.reshape(len(array), -1), array.dtype.itemsize
    positive = np.array(np.inf, array.dtype).view(f"i{size}")
    negative = np.array(-np.inf, array.dtype).view(f"u{size}")
    below_positive = rows.view(f"i{size}").max(axis=1) < positive
    below_negative = rows.view(f"u{size}").max(axis=1) < negative
    finite: NDArray[np.bool_] = below_positive & below_negative
    return finite
