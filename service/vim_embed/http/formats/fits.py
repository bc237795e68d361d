"""FITS files to pixels, in the decoder processes: headers are bounded here, before astropy reads.

What a header claims is compared with the file. Numbers, HDUs and stretches are `vim_embed_pixels`',
which the client uses too. astropy is the extra `astro`.
"""

from __future__ import annotations

import gzip
import io
import math
import re
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from vim_embed.errors import InvalidInput, MalformedRequest, PayloadTooLarge, UnsupportedMediaType

if TYPE_CHECKING:
    from PIL import Image

MEDIA_TYPES = ("application/fits", "image/fits")
# Of its pixels, in those of an encoded image: fluxes are stretched as several arrays of floats.
WEIGHT = 8
_MAGIC, _EXTENSION, _GZIP = b"SIMPLE  =", b"XTENSION=", b"\x1f\x8b"
_PACKED = {
    b"BZh": "bzip2", b"PK\3\4": "zip", b"\x1f\x9d": "compress", b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}  # fmt: skip
_PADDING = b"\0 "  # what may lie behind the last HDU and be no image
_BLOCK, _CARD = 2880, 80
_MOST_HDUS, _MOST_HEADER_BYTES = 256, 2 * 1024 * 1024
_MOST_AXES = 8
_UNPACKED, _UNPACKED_MULTIPLE = 16 * 1024 * 1024, 4  # bytes that a gzip file may become
_BITPIX = (8, 16, 32, 64, -32, -64)
_GROUPS = b"GROUPS"  # random ones, as of radio interferometers
_WHOLE = re.compile(rb"[+-]?\d{1,18}")
_COUNTS = {b"BITPIX", b"NAXIS", b"PCOUNT", b"GCOUNT"} | {
    b"NAXIS%d" % axis for axis in range(1, _MOST_AXES + 1)
}


def looks_like_fits(data: bytes | memoryview) -> bool:
    """Whether the first bytes are a FITS file's, or those of gzip, which no other image has."""
    start = bytes(data[: len(_MAGIC)])
    return start == _MAGIC or start.startswith(_GZIP)


def check_installed() -> None:
    """Raise UnsupportedMediaType where the service has no astropy."""
    if find_spec("astropy") is None:
        raise UnsupportedMediaType(
            "FITS is not read by this service, which lacks astropy: its operator installs "
            "vim-embed[astro]; `vim-embed embed` reads FITS without it, and sends pixels"
        )


def preload(told: Mapping[str, Any]) -> None:
    """Import what reading with these options takes, so that no image is charged for it."""
    needed = ["astropy.io.fits", "vim_embed_pixels.fits"]
    stretch = told["stretch"]
    if stretch["kind"] is not None or stretch["limits"] is not None:
        needed += ["astropy.visualization", "astropy.wcs"]
    if stretch["zoom"] is not None:
        needed.append("scipy.ndimage")
    for name in needed:
        import_module(name)


class FitsFile:
    """A FITS file that is open for all of its images. told: FitsOptions as a mapping.

    Raises InvalidInput, MalformedRequest or PayloadTooLarge, and whatever astropy raises; `place`
    names the image in their messages.
    """

    def __init__(self, data: bytes, told: Mapping[str, Any], place: str) -> None:
        from vim_embed_pixels.fits import FitsImages, FitsOptions

        data = _sound(data, place)
        with _refusing(place):
            self._images = FitsImages(io.BytesIO(data), len(data), FitsOptions.of(told))

    def close(self) -> None:
        self._images.close()

    def count(self, place: str) -> int:
        """How many images it has: one, unless the options ask for several."""
        with _refusing(place):
            return self._images.count()

    def read(self, row: int, check: Callable[[int, int], None], place: str) -> Image.Image:
        """An image as RGB. check: is called with its width and height before its numbers are read,
        and may raise."""
        import numpy as np
        from PIL import Image

        with _refusing(place):
            pixels = self._images.rgb(row, check)
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def _sound(data: bytes, place: str) -> bytes:
    data = _unpacked(data, place)
    end = check_headers(data, place)
    if data.startswith(_MAGIC, end):
        raise MalformedRequest(f"{place} has another FITS file behind it: send each by itself")
    if data[end:].strip(_PADDING):
        raise MalformedRequest(
            f"{place} has {len(data) - end:,} bytes behind its HDUs, which begin no other: a "
            "header is damaged, or other data were appended; save the file anew without them"
        )
    return data[:end]


@contextmanager
def _refusing(place: str) -> Iterator[None]:
    """Raise InvalidInput for what the pixels' package refuses."""
    from vim_embed_pixels.errors import PixelsError, in_a_query

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # astropy's remarks on headers
        try:
            yield
        except PixelsError as error:
            raise InvalidInput(f"{place}: {in_a_query(error.message)}") from None


def check_headers(data: bytes, place: str = "the file") -> int:
    """Go from header to header, and compare what each claims with the bytes that there are.

    The bytes of all HDUs; what follows them is none. Raises MalformedRequest or PayloadTooLarge.
    """
    if not data.startswith(_MAGIC):
        packed = next((name for mark, name in _PACKED.items() if data.startswith(mark)), None)
        why = (
            f"it is packed with {packed}: unpack it" if packed else "it does not begin with SIMPLE"
        )
        raise MalformedRequest(f"{place} is no FITS file: {why}")
    begin = hdus = of_headers = 0
    while begin == 0 or data.startswith(_EXTENSION, begin):
        hdus += 1
        if hdus > _MOST_HDUS:
            raise PayloadTooLarge(f"{place} has over {_MOST_HDUS} HDUs: send the one that is meant")
        end, counts = _header(data, begin, _MOST_HEADER_BYTES - of_headers, place)
        of_headers += end - begin
        size = _data_bytes(counts, place)
        if end + size > len(data):
            raise MalformedRequest(
                f"{place} is cut short: its HDU {hdus - 1} claims {size:,} bytes of data, and "
                f"{max(0, len(data) - end):,} follow its header"
            )
        begin = end + -(-size // _BLOCK) * _BLOCK
    if len(data) % _BLOCK and len(data) != end + size:  # some writers leave out the padding
        raise MalformedRequest(
            f"{place} has {len(data):,} bytes, which are no whole blocks of {_BLOCK:,}: bytes were "
            "lost or added on its way, as by a transfer as text; send the file as it was written"
        )
    return begin


def _header(data: bytes, begin: int, most: int, place: str) -> tuple[int, dict[bytes, int]]:
    """Where a header's last block ends, and its whole numbers that say how much data follows."""
    counts: dict[bytes, int] = {}
    for at in range(begin, min(len(data), begin + most), _CARD):
        card = data[at : at + _CARD]
        key = card[:8].rstrip()
        if key == b"END":
            return begin + -(-(at + _CARD - begin) // _BLOCK) * _BLOCK, counts
        if key == _GROUPS and card[8:9] == b"=":
            counts[key] = card[9:].partition(b"/")[0].strip() == b"T"
        if key in _COUNTS and card[8:9] == b"=":
            told = _whole(card, place)
            if counts.setdefault(key, told) != told:
                raise MalformedRequest(
                    f"{place} is damaged: a header has {key.decode()} twice, and they differ"
                )
    if len(data) - begin > most:
        raise PayloadTooLarge(
            f"{place} has over {_MOST_HEADER_BYTES:,} bytes of headers: send the image alone"
        )
    raise MalformedRequest(f"{place} is cut short, or damaged: a header has no END")


def _whole(card: bytes, place: str) -> int:
    text = card[9:].partition(b"/")[0].strip()
    if not _WHOLE.fullmatch(text):
        name = card[:8].decode("latin-1").strip()
        raise MalformedRequest(f"{place} is damaged: its {name} is no whole number")
    return int(text)


def _data_bytes(counts: Mapping[bytes, int], place: str) -> int:
    axes = counts.get(b"NAXIS", 0)
    if not 0 <= axes <= _MOST_AXES:
        raise MalformedRequest(f"{place} has {axes} axes: at most {_MOST_AXES} are read")
    if axes == 0:
        return 0
    missing = [f"NAXIS{axis}" for axis in range(1, axes + 1) if b"NAXIS%d" % axis not in counts]
    if missing:
        raise MalformedRequest(f"{place} is damaged: a header lacks {', '.join(missing)}")
    if counts.get(b"BITPIX") not in _BITPIX:
        raise MalformedRequest(
            f"{place} is damaged: its BITPIX is none of {', '.join(map(str, _BITPIX))}"
        )
    sides = [counts[b"NAXIS%d" % axis] for axis in range(1, axes + 1)]
    if sides[0] == 0 and axes > 1 and counts.get(_GROUPS):  # which count parameters elsewhere
        sides[0] = 1
    extra, groups = counts.get(b"PCOUNT", 0), counts.get(b"GCOUNT", 1)
    if min(*sides, extra, groups) < 0:
        raise MalformedRequest(f"{place} is damaged: a header counts below 0")
    return abs(counts[b"BITPIX"]) // 8 * groups * (extra + math.prod(sides))


def _unpacked(data: bytes, place: str) -> bytes:
    if not data.startswith(_GZIP):
        return data
    most = max(_UNPACKED, _UNPACKED_MULTIPLE * len(data))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:  # of one member or of several
            found = stream.read(most + 1)
    except EOFError:
        raise MalformedRequest(f"{place} is cut short: its gzip stream has no end") from None
    except (OSError, zlib.error) as error:
        raise MalformedRequest(
            f"{place} is damaged: it, or what follows it, cannot be unpacked ({error})"
        ) from None
    if len(found) > most:
        raise PayloadTooLarge(f"{place} unpacks to over {most:,} bytes: send it unpacked")
    if not found.startswith(_MAGIC):
        raise MalformedRequest(
            f"{place} is packed with gzip, and no FITS file inside: send other images unpacked"
        )
    return found
