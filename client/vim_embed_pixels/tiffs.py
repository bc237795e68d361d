"""What libtiff lets pass in silence in the strips and tiles of a TIFF.

It stops once a strip is full, before the checksum of deflated data; it hides what libjpeg remarks;
and it makes white lines of fax data that it cannot read. Raw, packed (PackBits), LZW and Zstandard
data have no checksums: changed bytes go unnoticed there.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

from PIL import ImageFile

from vim_embed_pixels.jpegs import check_jpeg

_COMPRESSION, _SAMPLES_PER_PIXEL, _PLANAR, _JPEG_TABLES = 259, 277, 284, 347  # tags
_PLACES = ((273, 279), (324, 325))  # of strips and of tiles: where they begin, their bytes
_RAW, _LZW, _JPEG, _DEFLATE = 1, 5, 7, (8, 32946)
_PACKBITS, _LZMA, _ZSTD, _WEBP = 32773, 34925, 50000, 50001
_TAKEN = {_RAW, _LZW, _JPEG, *_DEFLATE, _PACKBITS, _LZMA, _ZSTD, _WEBP}
_PIECE = 1 << 16
# Strips and tiles may be filled up at the edges: so much of a picture's bytes, and at least this.
_OFTEN, _SMALL = 4, 1 << 22


def check_tiff(image: ImageFile.ImageFile) -> None:
    """Before it is loaded. Raises OSError where what Pillow reads, which is listed in `tile`, does
    not fill the picture (libtiff looks itself), or where damage would not be noticed at all."""
    tags = _tags(image)
    compression = tags.get(_COMPRESSION, _RAW)
    if compression not in _TAKEN:
        raise OSError(
            f"it has TIFF's compression {compression}, as of fax, whose damage leaves no trace: "
            "save it anew, with LZW or none"
        )
    if any(tile[0] == "libtiff" for tile in image.tile):
        return
    layers = 1
    if tags.get(_PLANAR, 1) == 2:
        layers = min(int(tags.get(_SAMPLES_PER_PIXEL, 1)), len(image.getbands()))
    boxes = [tile[1] for tile in image.tile if tile[1] is not None]
    there = sum((right - left) * (lower - upper) for left, upper, right, lower in boxes)
    if there < image.width * image.height * layers:
        raise OSError("its strips do not fill the picture")


def check_strips(image: ImageFile.ImageFile, data: bytes) -> None:
    """After it was loaded. Raises OSError where deflated strips or those of JPEG are damaged."""
    tags = _tags(image)
    compression = tags.get(_COMPRESSION, _RAW)
    pixels = image.width * image.height
    if compression in _DEFLATE:
        left = _SMALL + _OFTEN * pixels * len(image.getbands())
        for strip in _strips(tags, data):
            left -= _inflated(strip, left)
    elif compression == _JPEG:
        tables = bytes(tags.get(_JPEG_TABLES, b""))[:-2]
        for strip in _strips(tags, data):
            check_jpeg(tables + bytes(strip[2:]) if tables else bytes(strip), _SMALL + pixels)


def _tags(image: ImageFile.ImageFile) -> Any:
    return image.tag_v2  # type: ignore[attr-defined]


def _strips(tags: Any, data: bytes) -> Iterator[memoryview]:
    for begins, sizes in _PLACES:
        for begin, size in zip(tags.get(begins, ()), tags.get(sizes, ()), strict=False):
            yield memoryview(data)[begin : begin + size]


def _inflated(strip: memoryview, most: int) -> int:
    """Bytes that a strip becomes. Raises OSError where these are over `most`, its stream does not
    end, or its checksum differs."""
    stream, found = zlib.decompressobj(), 0
    piece: bytes | memoryview = strip
    try:
        while not stream.eof and piece:
            found += len(stream.decompress(piece, _PIECE))
            piece = stream.unconsumed_tail
            if found > most:
                raise OSError("its strips hold more than the picture")
    except zlib.error as error:
        raise OSError(f"a strip is damaged ({error})") from None
    if not stream.eof:
        raise OSError("a strip is cut short")
    return found
