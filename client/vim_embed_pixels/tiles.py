"""Checks of compressed tiles before astropy's C code reads them.

That code trusts what a tile says of itself: one that claims more pixels than it was given memory
for writes beyond it, one that ends too early is read beyond its end, and numbers of a size that it
does not know are what the memory held before.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vim_embed_pixels.errors import UnusableImage

# astropy's own names of its modules and functions, which are no promise of it.
_PLACE = "astropy.io.fits.hdu.compressed"
_CODECS, _QUANTIZATION = f"{_PLACE}._codecs", f"{_PLACE}._quantization"
# What is checked: the kinds of tiles, and fluxes that were rounded with a dither.
_DITHERED = "SUBTRACTIVE_DITHER"
_CHECKED = ("HCOMPRESS_1", "PLIO_1", "RICE_1", _DITHERED)

_HCOMPRESS_HEAD = ">HiiiqBBB"  # magic, sides, scale, sum, bit planes of three kinds
_HCOMPRESS_MAGIC, _MOST_PLANES = 0xDD99, 64
_PIXEL_BYTES, _SLACK = 16, 1024  # that HCOMPRESS may read for a pixel, with all planes; at all
_PLIO_HEAD = "=7h"
_PLIO_SET, _PLIO_RUNS, _PLIO_STEPS = 1, (0, 4, 5), (6, 7)
_RICE_PIXEL_BYTES = (1, 2, 4)
_RICE_READ = 8  # bytes, more than it may read for a pixel once a tile has ended
_ROUNDED_BYTES = (1, 2, 4)
_OF_WHOLE_NUMBERS = ("HCOMPRESS_1", "PLIO_1", "RICE_1")
_SCALES = {"ZSCALE", "ZZERO"}  # columns: what a tile's numbers are multiplied with, and added to
_HEAP_COLUMN = re.compile(r"1?[PQ]([BIJED])")
_ELEMENT_BYTES = {"B": 1, "I": 2, "J": 4, "E": 4, "D": 8}


class LyingTile(ValueError):
    """A tile is not of the size that its image says."""


@cache
def check_tiles() -> None:
    """Let astropy raise LyingTile for such tiles. Where it has no such functions, nothing happens,
    and `check_codec` refuses images with such tiles."""
    for place, name, checked in (
        (_CODECS, "decompress_hcompress_1_c", _checked_hcompress),
        (_CODECS, "decompress_plio_1_c", _checked_plio),
        (_CODECS, "decompress_rice_1_c", _checked_rice),
        (_QUANTIZATION, "unquantize_float_c", _checked_dither),
        (_QUANTIZATION, "unquantize_double_c", _checked_dither),
    ):
        try:
            module = import_module(place)
        except ImportError:
            continue
        if function := getattr(module, name, None):
            setattr(module, name, checked(function))


def check_codec(hdu: Any) -> None:
    """Raise UnusableImage for an image with tiles that this version of astropy reads unchecked."""
    kind = getattr(hdu, "compression_type", None)
    if kind in _CHECKED and not _is_checked(kind):
        raise unsafe(f"its tiles are packed with {kind}, which is")
    table = getattr(hdu, "_bintable", None)
    rounding = "" if table is None else str(table.header.get("ZQUANTIZ", ""))
    if rounding.startswith(_DITHERED) and not _is_checked(_DITHERED):
        raise unsafe(f"its fluxes are rounded by {rounding}, which is")


def check_heap(table: Any) -> None:
    """Raise UnusableImage where a tile of a compressed image lies beyond the data of its HDU.

    table: astropy's, with a row for each tile, whose columns tell where the tile lies.
    """
    header = table.header
    of_rows = header["NAXIS1"] * header["NAXIS2"]
    heap = of_rows + header["PCOUNT"] - header.get("THEAP", of_rows)
    for column in table.columns:
        found = _HEAP_COLUMN.match(str(column.format))
        if found is None:
            continue
        told = np.asarray(table.data[column.name], np.int64)
        if told.shape != (header["NAXIS2"], 2):
            raise unsafe("it is a compressed image, which is")
        count, begin = told.T
        end = begin + count * _ELEMENT_BYTES[found[1]]
        outside = (count > 0) & ((begin < 0) | (end > heap) | (end < begin)) | (count < 0)
        if outside.any():
            raise UnusableImage(
                f"its compressed tile {int(outside.argmax())} lies beyond the data of its HDU: the "
                "file is damaged or cut short"
            )


def check_rounding(hdu: Any, table: Any) -> None:
    """Raise UnusableImage where nothing says which fluxes the rounded numbers of tiles stand for.

    astropy would show the numbers themselves. hdu, table: as it has the image and its tiles.
    """
    names = {name.upper() for name in table.columns.names}
    rounded = hdu.compression_type in _OF_WHOLE_NUMBERS and table.header["ZBITPIX"] < 0
    if (rounded or names & _SCALES) and not names >= _SCALES:
        raise UnusableImage(
            "its compressed fluxes are rounded, and its table lacks the column "
            f"{' or '.join(sorted(_SCALES - names))}: write it anew from the fluxes, with GZIP_2"
        )


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
    if kind == _DITHERED:
        flux = np.random.default_rng(0).normal(size=(30, 30)).astype(np.float32)
        tiled = fits.CompImageHDU(flux, quantize_method=1, dither_seed=1)
    else:
        pixels = np.zeros((4, 4), np.int32)
        tiled = fits.CompImageHDU(pixels, compression_type=kind, tile_shape=(4, 4))
    fits.HDUList([fits.PrimaryHDU(), tiled]).writeto(file)
    written = bytearray(file.getvalue())
    with fits.open(io.BytesIO(written), disable_image_compression=True, memmap=False) as opened:
        header = opened[1].header
        begin = opened[1].fileinfo()["datLoc"] + header["NAXIS1"] * header["NAXIS2"]
    if kind == _DITHERED:  # the dither of tile 0 is not of this table
        return bytes(written).replace(b"ZDITHER0=                    1", b"ZDITHER0= %20d" % 0)
    if kind == "RICE_1":  # no number has three bytes
        return bytes(written).replace(b"ZVAL2   =                    4", b"ZVAL2   = %20d" % 3)
    if kind == "PLIO_1":  # a word more than there is
        struct.pack_into(">h", written, begin + 6, header["PCOUNT"] // 2 + 1)
    else:  # no magic
        struct.pack_into(">h", written, begin, 0)
    return bytes(written)


def _checked_hcompress(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tile: bytes, rows: int, columns: int, *options: Any) -> Any:
        _check_hcompress(tile, rows * columns)
        behind = _PIXEL_BYTES * rows * columns + _SLACK
        # A tile that ends too early would be a picture, of whatever lies behind it.
        found = function(tile + bytes(behind), rows, columns, *options)
        if found != function(tile + b"\xff" * behind, rows, columns, *options):
            raise LyingTile("an HCOMPRESS tile is cut short")
        return found

    return checked


def _checked_plio(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tile: bytes, pixels: int) -> Any:
        _check_plio(tile, pixels)
        return function(tile + bytes(_SLACK), pixels)

    return checked


def _checked_rice(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(tile: bytes, block: int, pixel_bytes: int, pixels: int) -> Any:
        if pixel_bytes not in _RICE_PIXEL_BYTES or block < 1:
            raise LyingTile(f"a RICE tile claims blocks of {block} numbers of {pixel_bytes} bytes")
        # It notices the end of a tile only behind a block, and a zero makes it read on.
        padded = bytes(tile) + b"\xff" * (_RICE_READ * min(block, pixels) + _SLACK)
        return function(np.frombuffer(padded, np.uint8)[: len(tile)], block, pixel_bytes, pixels)

    return checked


def _checked_dither(function: Callable[..., Any]) -> Callable[..., Any]:
    def checked(rounded: bytes, row: int, pixels: int, *options: Any) -> Any:
        *_, number_bytes = options
        if row < 1:
            raise LyingTile("its ZDITHER0 is not from 1 to 10000, or is missing")
        if number_bytes not in _ROUNDED_BYTES or len(rounded) != number_bytes * pixels:
            raise LyingTile(f"a tile holds {len(rounded)} bytes for {pixels} rounded fluxes")
        return function(rounded, row, pixels, *options)

    return checked


def _check_hcompress(tile: bytes, pixels: int) -> None:
    if len(tile) < struct.calcsize(_HCOMPRESS_HEAD):
        raise LyingTile("an HCOMPRESS tile is cut short")
    magic, rows, columns, _, _, *planes = struct.unpack_from(_HCOMPRESS_HEAD, tile)
    if magic != _HCOMPRESS_MAGIC or max(planes) > _MOST_PLANES:
        raise LyingTile("an HCOMPRESS tile does not begin as one")
    if min(rows, columns) < 1 or rows * columns != pixels:
        raise LyingTile(f"an HCOMPRESS tile is of {rows}x{columns} pixels, not of {pixels}")


def _check_plio(tile: bytes, pixels: int) -> None:
    """A line list of 16-bit words. The third is its length, or below 1, and then the second tells
    where the list begins, and the fourth and fifth how long it is."""
    if len(tile) < struct.calcsize(_PLIO_HEAD):
        raise LyingTile("a PLIO tile is cut short")
    _, begin, length, low, high, _, _ = struct.unpack_from(_PLIO_HEAD, tile)
    first = 3
    if length < 1:
        first = begin
        length = (high << 15) + low
        if begin < 0:
            raise LyingTile("a PLIO tile begins before itself")
    if not 0 <= length <= len(tile) // 2:
        raise LyingTile(f"a PLIO tile claims {length} words, and has {len(tile) // 2}")
    told = _plio_pixels(np.frombuffer(tile, "=u2", length)[first:])
    if told != pixels:
        raise LyingTile(f"a PLIO tile tells of {told} pixels, and has {pixels}")


def _plio_pixels(words: NDArray[Any]) -> int:
    """How many pixels the words of a list tell of: each has four bits of what to do, and a number.

    What it does not tell of would be 0.
    """
    does, number = words >> 12, (words & 0xFFF).astype(np.int64)
    tells = np.ones(len(words), bool)
    for at in np.flatnonzero(does == _PLIO_SET):  # the next word is part of a value
        if tells[at]:
            tells[at : at + 2] = False
    runs = tells & np.isin(does, _PLIO_RUNS)
    return int(number[runs].sum()) + int(np.count_nonzero(tells & np.isin(does, _PLIO_STEPS)))
