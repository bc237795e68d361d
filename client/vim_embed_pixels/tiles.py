"""Checks of compressed tiles before astropy's C code reads them.

That code trusts what a tile says of itself: one that claims more pixels than it was given memory
for writes beyond it, and one that ends too early is read beyond its end.
"""

from __future__ import annotations

import struct
from functools import cache
from typing import Any

_HCOMPRESS_HEAD = ">HiiiqBBB"  # magic, sides, scale, sum, bit planes of three kinds
_HCOMPRESS_MAGIC, _MOST_PLANES = 0xDD99, 64
_PIXEL_BYTES, _SLACK = 16, 1024  # that HCOMPRESS may read for a pixel, with all planes; at all
_PLIO_HEAD = "=7h"


@cache
def check_tiles() -> None:
    """Let astropy raise ValueError for such tiles."""
    from astropy.io.fits.hdu.compressed import _codecs

    hcompress, plio = _codecs.decompress_hcompress_1_c, _codecs.decompress_plio_1_c

    def checked_hcompress(tile: bytes, rows: int, columns: int, *options: Any) -> Any:
        _check_hcompress(tile, rows * columns)
        padded = tile + bytes(_PIXEL_BYTES * rows * columns + _SLACK)
        return hcompress(padded, rows, columns, *options)

    def checked_plio(tile: bytes, pixels: int) -> Any:
        _check_plio(tile)
        return plio(tile + bytes(_SLACK), pixels)

    _codecs.decompress_hcompress_1_c, _codecs.decompress_plio_1_c = checked_hcompress, checked_plio


def _check_hcompress(tile: bytes, pixels: int) -> None:
    if len(tile) < struct.calcsize(_HCOMPRESS_HEAD):
        raise ValueError("an HCOMPRESS tile is cut short")
    magic, rows, columns, _, _, *planes = struct.unpack_from(_HCOMPRESS_HEAD, tile)
    if magic != _HCOMPRESS_MAGIC or max(planes) > _MOST_PLANES:
        raise ValueError("an HCOMPRESS tile does not begin as one")
    if min(rows, columns) < 1 or rows * columns != pixels:
        raise ValueError(f"an HCOMPRESS tile is of {rows}x{columns} pixels, not of {pixels}")


def _check_plio(tile: bytes) -> None:
    """A line list of 16-bit words. The third is its length, or below 1, and then the second tells
    where the list begins, and the fourth and fifth how long it is."""
    if len(tile) < struct.calcsize(_PLIO_HEAD):
        raise ValueError("a PLIO tile is cut short")
    _, begin, length, low, high, _, _ = struct.unpack_from(_PLIO_HEAD, tile)
    if length < 1:
        length = (high << 15) + low
        if begin < 0:
            raise ValueError("a PLIO tile begins before itself")
    if not 0 <= length <= len(tile) // 2:
        raise ValueError(f"a PLIO tile claims {length} words, and has {len(tile) // 2}")
