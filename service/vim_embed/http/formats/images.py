"""Encoded images to pixels: decoded, converted to RGB and resized as the model's spec says.

Bounded by pixels, frames, JPEG scans, formats and time: a file of 36 bytes can ask for seconds of
work and a gigabyte of memory.
"""

from __future__ import annotations

import io
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from vim_embed.errors import (
    DeadlineExceeded,
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from vim_embed.types.preprocessing import Preprocessing

# Pillow reads many more, some through other programs (EPS) or without bounds (ICO): not here.
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
_START_OF_SCAN = b"\xff\xda"  # cannot occur within a scan
_MAX_SCANS = 100  # each costs a pass over the whole picture; progressive files have about ten
_LARGE_PIXELS = 8_000_000
_LARGE_AT_ONCE = threading.BoundedSemaphore(2)  # a large image takes 16 bytes a pixel
_EIGHT_BIT = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV"}


class DecodeBudget:
    """Pixels and seconds that the images of one request may take together."""

    def __init__(self, pixels: int, seconds: float) -> None:
        self._pixels = pixels
        self._left = pixels
        self.seconds = seconds
        self._until = time.monotonic() + seconds

    @property
    def seconds_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def take(self, pixels: int) -> None:
        """Before an image is decoded. Raises PayloadTooLarge or DeadlineExceeded."""
        self._left -= pixels
        if self._left < 0:
            raise PayloadTooLarge(
                f"the images have more than {self._pixels} pixels together: send fewer per request"
            )
        if time.monotonic() > self._until:
            raise self.late()

    def late(self) -> DeadlineExceeded:
        return DeadlineExceeded(f"decoding the images took longer than {self.seconds:.3g} s")


def decode_image(
    data: bytes | memoryview,
    spec: Preprocessing,
    *,
    max_pixels: int,
    place: str = "the image",
    budget: DecodeBudget | None = None,
) -> NDArray[np.uint8]:
    """Decode one image to (3, S, S) uint8 RGB at the model's native size S.

    Raises UnsupportedMediaType, MalformedRequest, PayloadTooLarge, InvalidInput or
    DeadlineExceeded; `place` names the image in their messages. Size (taken from `budget`), frames
    and scans are checked before any pixel is decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size and metadata warnings
        try:
            rgb = _decode(data, max_pixels, place, budget)
        except UnidentifiedImageError as error:
            raise UnsupportedMediaType(
                f"{place} is no image that can be read here: send PNG, JPEG, WebP or TIFF"
            ) from error
        except Image.DecompressionBombError as error:
            raise PayloadTooLarge(f"{place} has too many pixels: scale it down first") from error
        except ServiceError:
            raise
        except Exception as error:  # Pillow's readers raise whatever damaged files lead them to
            reason = str(error) or type(error).__name__
            raise MalformedRequest(f"{place} is damaged or cut short ({reason})") from error
    side = spec.image_size
    method = Image.Resampling[spec.interpolation.upper()]
    resized = rgb.resize((side, side), resample=method)
    return np.ascontiguousarray(np.asarray(resized, dtype=np.uint8).transpose(2, 0, 1))


def _decode(
    data: bytes | memoryview, max_pixels: int, place: str, budget: DecodeBudget | None
) -> Image.Image:
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check(image, max_pixels, place)
        if image.format == "JPEG" and bytes(data).count(_START_OF_SCAN) > _MAX_SCANS:
            raise PayloadTooLarge(f"{place} has over {_MAX_SCANS} scans: save it anew")
        pixels = image.width * image.height
        if budget is not None:
            budget.take(pixels)
        with _turn(budget) if pixels > _LARGE_PIXELS else nullcontext():
            return image.convert("RGB")


@contextmanager
def _turn(budget: DecodeBudget | None) -> Iterator[None]:
    """One of the few large images that are decoded at once. Raises DeadlineExceeded."""
    if not _LARGE_AT_ONCE.acquire(timeout=None if budget is None else budget.seconds_left):
        assert budget is not None, "without one there is no end of waiting"
        raise budget.late()
    try:
        yield
    finally:
        _LARGE_AT_ONCE.release()


def _check(image: Image.Image, max_pixels: int, place: str) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise PayloadTooLarge(
            f"{place} has {width}×{height} pixels, over the limit of {max_pixels}: "
            f"scale it down first"
        )
    if getattr(image, "is_animated", False):  # n_frames would read through all of them
        raise InvalidInput(f"{place} has several frames: send one frame each")
    if image.mode not in _EIGHT_BIT:
        raise InvalidInput(
            f"{place} has pixels of mode {image.mode}, which 8-bit RGB cannot hold: "
            f"stretch it to 8 bits first, or send a normalised float32 array"
        )
