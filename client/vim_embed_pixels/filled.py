"""Whether a file's data fill its picture: Pillow leaves the rest black in silence.

Pillow refuses files that end too early. These end where they say, but hold fewer rows.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import ImageFile

_PNG_HEAD = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the colour type
# Of the seven passes of an interlaced PNG: first column and row, steps to the next.
_PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
_PIECE = 1 << 16
_SAMPLES_PER_PIXEL, _PLANAR = 277, 284  # tags of TIFF


def check_filled(image: ImageFile.ImageFile, data: bytes) -> None:
    """Load the image. Raises OSError where the data do not fill it, and what `load` raises."""
    if image.format == "TIFF":
        _check_strips(image)
    image.load()
    if image.format == "PNG":
        _check_png(image, data)


def _check_strips(image: ImageFile.ImageFile) -> None:
    """libtiff looks itself; what Pillow reads is listed in `tile`."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    if any(tile[0] == "libtiff" for tile in image.tile):
        return
    layers = 1
    if tags.get(_PLANAR, 1) == 2:
        layers = min(int(tags.get(_SAMPLES_PER_PIXEL, 1)), len(image.getbands()))
    boxes = [tile[1] for tile in image.tile if tile[1] is not None]
    there = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if there < image.width * image.height * layers:
        raise OSError("its strips do not fill the picture")


def _check_png(image: ImageFile.ImageFile, data: bytes) -> None:
    """A picture that is cut has a black last row, so that others are not unpacked again."""
    depth, colours, interlaced = data[24], data[25], data[28]
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not interlaced and last.getbbox(alpha_only=False) is not None:
        return
    wanted = _png_bytes(image.width, image.height, depth * _SAMPLES[colours], bool(interlaced))
    left, stream = wanted, zlib.decompressobj()
    for chunk in _png_data(data):
        piece = chunk
        while left > 0 and piece:
            left -= len(stream.decompress(piece, min(left, _PIECE)))
            piece = stream.unconsumed_tail
    if left > 0:
        raise OSError(f"its data are {wanted - left} bytes, and its picture takes {wanted}")


def _png_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Of a picture before it is packed. bits: of a pixel."""
    total = 0
    for column, row, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, rows = -(-(width - column) // across), -(-(height - row) // down)
        if columns > 0 and rows > 0:
            total += rows * (1 + (columns * bits + 7) // 8)
    return total


def _png_data(data: bytes) -> Iterator[bytes]:
    place = _PNG_HEAD
    while place + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        if kind == b"IDAT":
            yield data[place + 8 : place + 8 + size]
        place += 12 + size
