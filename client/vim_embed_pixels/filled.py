"""Whether a file's data fill its picture, and are what was written, as far as the format tells.

Pillow refuses files that end too early. Others end where they say, but hold fewer rows, which
Pillow leaves black in silence; or their checksums differ, which it does not always compare.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

from PIL import Image, ImageFile

from vim_embed_pixels.alone import check_alone
from vim_embed_pixels.jpegs import jpeg_picture
from vim_embed_pixels.libtiff import quiet
from vim_embed_pixels.tiffs import check_strips, check_tiff

_PNG_HEAD = 8
_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a pixel, by the colour type
# Of the seven passes of an interlaced PNG: first column and row, steps to the next.
_PASSES = (
    (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # fmt: skip
_PIECE = 1 << 16


def filled(image: ImageFile.ImageFile, data: bytes) -> Image.Image:
    """The picture, loaded. Raises OSError where its data do not fill it, are damaged, or have
    colours that its palette lacks, UnusableImage where another image lies behind it, and what
    `load` raises."""
    check_alone(image, data)
    if image.format == "JPEG":
        return jpeg_picture(image, data)
    if image.format == "TIFF":
        check_tiff(image)
        with quiet():
            image.load()
        check_strips(image, data)
    else:
        image.load()
    if image.format == "PNG":
        _check_png(image, data)
    _check_palette(image)
    return image


def _check_palette(image: Image.Image) -> None:
    """A colour that is not there would be black."""
    if image.mode != "P":
        return
    palette = image.palette
    colours = len(palette.palette) // len(palette.mode) if palette else 0
    highest = image.getextrema()[1]
    if highest >= colours:  # type: ignore[operator]
        raise OSError(f"its pixels have colours up to {highest}, and its palette {colours}")


def _check_png(image: ImageFile.ImageFile, data: bytes) -> None:
    """A picture that is cut has a black last row, so that others are not unpacked again."""
    depth, colours, interlaced = data[24], data[25], data[28]
    chunks = list(_png_data(data))
    last = image.crop((0, image.height - 1, image.width, image.height))
    if not interlaced and last.getbbox(alpha_only=False) is not None:
        return
    wanted = _png_bytes(image.width, image.height, depth * _SAMPLES[colours], bool(interlaced))
    left, stream = wanted, zlib.decompressobj()
    for chunk in chunks:
        piece: bytes | memoryview = chunk
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


def _png_data(data: bytes) -> Iterator[memoryview]:
    """The data chunks. Raises OSError where a checksum differs: Pillow compares the others'."""
    place, whole = _PNG_HEAD, memoryview(data)
    while place + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, place)
        end = place + 8 + size
        if kind == b"IDAT":
            if zlib.crc32(whole[place + 4 : end]).to_bytes(4, "big") != whole[end : end + 4]:
                raise OSError("a checksum of its data differs")
            yield whole[place + 8 : end]
        place = end + 4
