"""Encoded images to pixels: decoded, turned upright, converted to RGB and resized as the model's
spec says. Runs in decoder processes (image_decoder.py).

Bounded by pixels, frames, JPEG scans, PNG chunks and formats: a file of 36 bytes can ask for
seconds of work and a gigabyte of memory. What a file is made of is looked at before Pillow opens
it where Pillow's own look, in Python, is what takes so long.
"""

from __future__ import annotations

import io
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin, UnidentifiedImageError

from vim_embed.errors import (
    InvalidInput,
    MalformedRequest,
    PayloadTooLarge,
    ServiceError,
    UnsupportedMediaType,
)
from vim_embed.http.formats.fits import FitsFile
from vim_embed.types.preprocessing import Preprocessing
from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.filled import filled
from vim_embed_pixels.images import FORMATS, Fit, check_image, fit, upright_rgb

_START_OF_SCAN = b"\xff\xda"  # cannot occur within a scan
_MAX_SCANS = 100  # each costs a pass over the whole picture; progressive files have about ten
_PNG_HEAD = b"\x89PNG\r\n\x1a\n"
# libpng writes a chunk for 8 KiB of pixels. So many are taken, and one more for so many bytes.
_PNG_CHUNKS, _PNG_CHUNK_BYTES = 64, 1024
_GAP = rb"(?:\s|#[^\n\r]{0,200}[\n\r]){1,40}"  # Pillow reads a byte at a time here
_NUMBER = _GAP + rb"\d{1,10}"
_BINARY_PNM = re.compile(rb"P4" + 2 * _NUMBER + rb"|P[56]" + 3 * _NUMBER)
_PNM_KINDS = b"0123456fy"  # second bytes of what Pillow takes for one
PngImagePlugin.MAX_TEXT_MEMORY = 4 * 1024 * 1024  # of all decompressed remarks of a file


class Large(Exception):
    """An image of more pixels than may be decoded without a word to whoever counts memory."""

    def __init__(self, pixels: int) -> None:
        super().__init__(pixels)
        self.pixels = pixels


class Decoded(NamedTuple):
    """Red, green and blue planes one after the other; pixels of the picture in its file."""

    planes: bytes
    pixels: int


def fit_of(spec: Preprocessing) -> Fit:
    """How an image comes to the size that a model's spec says."""
    return Fit(spec.image_size, spec.interpolation, spec.resize_to, spec.keep_aspect)


def decode_image(
    data: bytes | memoryview, spec: Preprocessing, *, max_pixels: int, place: str = "the image"
) -> NDArray[np.uint8]:
    """Decode one image to (3, S, S) uint8 RGB at the model's native size S.

    Raises UnsupportedMediaType, MalformedRequest, PayloadTooLarge or InvalidInput; `place` names
    the image in their messages.
    """
    size = spec.image_size
    decoded = decode_planes(data, fit_of(spec), max_pixels=max_pixels, place=place)
    return np.frombuffer(bytearray(decoded.planes), np.uint8).reshape(3, size, size)


def decode_planes(
    data: bytes | memoryview,
    wanted: Fit,
    *,
    max_pixels: int,
    place: str = "the image",
    large: int | None = None,
    fits: FitsFile | None = None,
    row: int = 0,
) -> Decoded:
    """One image, at the model's size.

    large: raise Large for an image of more pixels, before it is decoded. fits: the data as a
    FITS file, of which the image `row` is meant. Else as `decode_image`.
    """
    with _refusing(place):
        if fits is None:
            rgb = _decode(data, max_pixels, place, large)
        else:
            check = partial(_check_sides, max_pixels, place, large)
            rgb = fits.read(row, check, place)
    planes = b"".join(band.tobytes() for band in fit(rgb, wanted).split())
    return Decoded(planes, rgb.width * rgb.height)


def open_fits(data: bytes, told: Mapping[str, Any], place: str) -> FitsFile:
    """Raises as `decode_image`."""
    with _refusing(place):
        return FitsFile(data, told, place)


def count_images(fits: FitsFile, place: str) -> int:
    """How many images a FITS file has. Raises as `decode_image`."""
    with _refusing(place):
        return fits.count(place)


@contextmanager
def _refusing(place: str) -> Iterator[None]:
    """Raise a ServiceError, or Large, for whatever readers raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's own size and metadata warnings
        try:
            yield
        except UnidentifiedImageError as error:
            raise UnsupportedMediaType(
                f"{place} is no image that can be read here: send PNG, JPEG, WebP, TIFF or FITS"
            ) from error
        except Image.DecompressionBombError as error:
            raise PayloadTooLarge(f"{place} has too many pixels: scale it down first") from error
        except (ServiceError, Large):
            raise
        except MemoryError as error:
            raise PayloadTooLarge(
                f"{place} takes more memory to decode than it may: save it anew"
            ) from error
        except Exception as error:  # Pillow's readers raise whatever damaged files lead them to
            reason = str(error) or type(error).__name__
            raise MalformedRequest(f"{place} is damaged or cut short ({reason})") from error


def _decode(
    data: bytes | memoryview, max_pixels: int, place: str, large: int | None
) -> Image.Image:
    raw = bytes(data)
    _check_bytes(raw, place)
    _check_pixels(_webp_pixels(raw), max_pixels, place, large)  # opening one takes its memory
    with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
        _check_pixels(image.size, max_pixels, place, large)
        try:
            check_image(image)
            return upright_rgb(filled(image, raw))
        except UnusableImage as error:
            raise InvalidInput(f"{place} {error.message}") from None


def _check_bytes(data: bytes, place: str) -> None:
    """What costs Pillow much more than it weighs, found without it. Raises ServiceError."""
    if data.startswith(_PNG_HEAD):
        most = _PNG_CHUNKS + len(data) // _PNG_CHUNK_BYTES
        if sum(1 for _ in zip(_png_chunks(data), range(most + 1), strict=False)) > most:
            raise PayloadTooLarge(f"{place} has over {most} PNG chunks: save it anew")
    elif data.startswith(b"\xff\xd8"):
        if data.count(_START_OF_SCAN) > _MAX_SCANS:
            raise PayloadTooLarge(f"{place} has over {_MAX_SCANS} scans: save it anew")
    elif data.startswith(b"BM"):
        if data[30:34] in (b"\1\0\0\0", b"\2\0\0\0"):
            raise UnsupportedMediaType(
                f"{place} is a run-length encoded BMP, which is not read here: save it as PNG"
            )
    elif data[:1] == b"P" and data[1:2] in _PNM_KINDS and not _BINARY_PNM.match(data):
        raise UnsupportedMediaType(
            f"{place} is a PNM in plain text, or with long remarks, which is not read here: save "
            "it as PNG"
        )


def _png_chunks(data: bytes) -> Iterator[int]:
    place = len(_PNG_HEAD)
    while place + 12 <= len(data):
        yield place
        place += 12 + struct.unpack_from(">I", data, place)[0]


def _check_pixels(size: tuple[int, int], max_pixels: int, place: str, large: int | None) -> None:
    width, height = size
    if width * height > max_pixels:
        raise PayloadTooLarge(
            f"{place} has {width}×{height} pixels, over the limit of {max_pixels}: "
            f"scale it down first"
        )
    if large is not None and width * height > large:
        raise Large(width * height)


def _check_sides(max_pixels: int, place: str, large: int | None, width: int, height: int) -> None:
    _check_pixels((width, height), max_pixels, place, large)


def _webp_pixels(data: bytes) -> tuple[int, int]:
    """Width and height of a WebP; of anything else none."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP" or len(data) < 30:
        return 0, 0
    kind, bits = data[12:16], int.from_bytes(data[21:25], "little")
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[at : at + 3], "little") + 1 for at in (24, 27))
    elif kind == b"VP8L":
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (int.from_bytes(data[at : at + 2], "little") & 0x3FFF for at in (26, 28))
    return width, height
