"""Whether a second image lies behind a file's picture, which readers leave out in silence.

Files that were put together look so (`cat a.png b.png`). Whatever else lies there, such as padding
or what cameras append, is no image and stays.
"""

from __future__ import annotations

import re

from PIL import ImageFile

from vim_embed_pixels.errors import UnusableImage
from vim_embed_pixels.jpegs import jpeg_end

_BEGINNINGS = re.compile(
    rb"\s*\0*(?:\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|II\*\0|MM\0\*|P[1-6]\s|"
    rb"BM....\0\0\0\0|SIMPLE  =)",
    re.DOTALL,
)
_PNG_END = b"IEND"
_GIF_EXTENSION, _GIF_IMAGE = 0x21, 0x2C
_PNM_BANDS = {"1": 1, "L": 1, "RGB": 3}


def check_alone(image: ImageFile.ImageFile, data: bytes) -> None:
    """Raise UnusableImage where another image begins where this one ends.

    image: that Pillow has opened, and not loaded. A TIFF has no end.
    """
    end = _end(image, data)
    if end is not None and _BEGINNINGS.match(data, end):
        raise UnusableImage(
            "has another image behind its picture: send each image as a file of its own"
        )


def _end(image: ImageFile.ImageFile, data: bytes) -> int | None:
    """Where a file's picture ends, as far as its format tells."""
    kind = image.format
    if kind == "PNG":
        return _png_end(data)
    if kind in ("JPEG", "MPO"):
        return jpeg_end(data)
    if kind == "WEBP":
        return 8 + int.from_bytes(data[4:8], "little")
    if kind == "GIF":
        return _gif_end(data)
    if not image.tile or kind not in ("BMP", "PPM"):
        return None
    begin: int = image.tile[0][2]
    row: int = image.width * _PNM_BANDS.get(image.mode, 0)
    if kind == "BMP":
        row = (image.width * int.from_bytes(data[28:30], "little") + 31) // 32 * 4
    elif image.mode == "1":
        row = (image.width + 7) // 8
    return begin + row * image.height if row else None


def _png_end(data: bytes) -> int | None:
    at = 8
    while at + 12 <= len(data):
        kind = data[at + 4 : at + 8]
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if kind == _PNG_END:
            return at
    return None


def _gif_end(data: bytes) -> int | None:
    at = 13 + _colours(data, 10)
    while at < len(data):
        kind = data[at]
        if kind == _GIF_EXTENSION:
            at = _behind_blocks(data, at + 2)
        elif kind == _GIF_IMAGE:
            at = _behind_blocks(data, at + 11 + _colours(data, at + 9))
        else:
            return at + 1
    return None


def _colours(data: bytes, at: int) -> int:
    """Bytes of the table of colours that the byte there tells of."""
    flags = data[at] if at < len(data) else 0
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _behind_blocks(data: bytes, at: int) -> int:
    while at < len(data) and data[at]:
        at += 1 + data[at]
    return at + 1
