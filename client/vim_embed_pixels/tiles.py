"""Checks of compressed tiles before astropy's C code reads them.

That code trusts what a tile says of itself: one that claims more pixels than it was given memory
for writes beyond it, and one that ends too early is read beyond its end.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from typing import Any

import numpy as np

from vim_embed_pixels.errors import UnusableImage

# astropy's own names of the functions, which are no promise of it, and of the kinds of tiles.
_HCOMPRESS, _PLIO = "decompress_hcompress_1_c", "decompress_plio_1_c"
_CHECKED = ("HCOMPRESS_1", "PLIO_1")

_HCOMPRESS_HEAD = ">HiiiqBBB"  # magic, sides, scale, sum, bit planes of three kinds
_HCOMPRESS_MAGIC, _MOST_PLANES = 0xDD99, 64
_PIXEL_BYTES, _SLACK = 16, 1024  # that HCOMPRESS may read for a pixel, with all planes; at all
_PLIO_HEAD = "=7h"


class LyingTile(ValueError):
    """A tile is not of the size that its image says."""


@cache
def check_tiles() -> None:
    """Let astropy raise LyingTile for such tiles. Where it has no such functions, nothing happens,
    and `check_codec` refuses images with such tiles."""
    try:
        from astropy.io.fits.hdu.compressed import _codecs
    except ImportError:
        return
    for name, checked in ((_HCOMPRESS, _checked_hcompress), (_PLIO, _checked_plio)):
        if function := getattr(_codecs, name, None):
            setattr(_codecs, name, checked(function))


def check_codec(hdu: Any) -> None:
    """Raise UnusableImage for an image with tiles that this version of astropy reads unchecked."""
    kind = getattr(hdu, "compression_type", None)
    if kind in _CHECKED and not _is_checked(kind):
        raise unsafe(f"its tiles are packed with {kind}, which is")


def unsafe(what: str) -> UnusableImage:
    """For what this version of astropy gives no way to check."""
    return UnusableImage(
        f"{what} not safe to read with astropy {version('astropy')}: unpack the file first, with "
        "funpack; or install an astropy that vim-embed was tested with (constraints.txt)"
    )


@cache
def _is_checked(kind: str) -> bool:
    """Whether astropy's own reader comes to the checks: it is given a tile that is none."""
    from astropy.io import fits

    try:
        with fits.open(io.BytesIO(_no_tile(fits, kind)), memmap=False) as opened:
            _ = opened[1].data
    except LyingTile:
        return True
    except Exception:  # of astropy, which came to the tile first
        return False
    return False


def _no_tile(fits: Any, kind: str) -> bytes:
    """A file that does no harm where nothing checks it."""
    file = io.BytesIO()
    pixels = np.zeros((4, 4), np.int32)
    tiled = fits.CompImageHDU(pixels, compression_type=kind, tile_shape=(4, 4))
    fits.HDUList([fits.PrimaryHDU(), tiled]).writeto(file)
    written = bytearray(file.getvalue())
    with fits.open(io.BytesIO(written), disable_image_compression=True, memmap=False) as opened:
        header = opened[1].header
        begin = opened[1].fileinfo()["datLoc"] + header["NAXIS1"] * header["NAXIS2"]
    if kind == "PLIO_1":  # a word more than there is
        struct.pack_into(">h", written, begin + 6, header["PCOUNT"] // 2 + 1)
    else:  # no magic
        struct.pack_into(">h", written, begin, 0)
    return bytes(written)


def _checked_hcompress(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tile: bytes, rows: int, columns: int, *options: Any) -> Any:
        _check_hcompress(tile, rows * columns)
        padded = tile + bytes(_PIXEL_BYTES * rows * columns + _SLACK)
        return function(padded, rows, columns, *options)

    return checked


def _checked_plio(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tile: bytes, pixels: int) -> Any:
        _check_plio(tile)
        return function(tile + bytes(_SLACK), pixels)

    return checked


def _check_hcompress(tile: bytes, pixels: int) -> None:
    if len(tile) < struct.calcsize(_HCOMPRESS_HEAD):
        raise LyingTile("an HCOMPRESS tile is cut short")
    magic, rows, columns, _, _, *planes = struct.unpack_from(_HCOMPRESS_HEAD, tile)
    if magic != _HCOMPRESS_MAGIC or max(planes) > _MOST_PLANES:
        raise LyingTile("an HCOMPRESS tile does not begin as one")
    if min(rows, columns) < 1 or rows * columns != pixels:
        raise LyingTile(f"an HCOMPRESS tile is of {rows}x{columns} pixels, not of {pixels}")


def _check_plio(tile: bytes) -> None:
    """A line list of 16-bit words. The third is its length, or below 1, and then the second tells
    where the list begins, and the fourth and fifth how long it is."""
    if len(tile) < struct.calcsize(_PLIO_HEAD):
        raise LyingTile("a PLIO tile is cut short")
    _, begin, length, low, high, _, _ = struct.unpack_from(_PLIO_HEAD, tile)
    if length < 1:
        length = (high << 15) + low
        if begin < 0:
            raise LyingTile("a PLIO tile begins before itself")
    if not 0 <= length <= len(tile) // 2:
        raise LyingTile(f"a PLIO tile claims {length} words, and has {len(tile) // 2}")
