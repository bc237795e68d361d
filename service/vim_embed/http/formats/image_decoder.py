"""A decoder process: reads encoded images from standard input, writes pixels to shared memory.

Started by image_pool.py, and ended by it at any time; whatever an image makes Pillow do, it does it
here, within a CPU time and memory of its own. It sees no other request's images.

For each image comes a line of JSON (an Order) and the file's bytes; back goes a line of JSON:
{"pixels": N} once its planes are in the shared memory, {"large": N} for an image that needs leave
first, {"rows": N} where images are counted, or {"code", "message", "worn"} of a ServiceError. worn:
after it the process should end.
"""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vim_embed.errors import ServiceError
from vim_embed.http.formats import fits
from vim_embed.http.formats.images import Large, count_images, decode_planes, open_fits
from vim_embed_pixels.images import Fit

_MIB = 1024 * 1024
_EVERYDAY = 64 * _MIB  # of memory that an image may take, whatever its size,
_OF_FILE = 4  # and for each byte of its file,
_OF_PIXEL = 20  # and of its picture: two copies in four channels, two in three, and some
_PAGE = resource.getpagesize()
# Errors after which C libraries went ways that are seldom gone. Damaged files raise others.
_ABNORMAL = (MemoryError, SystemError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What to do with the bytes that follow.

    large: pixels from which on leave is asked for. place: what messages call the image. slot: of
    the shared memory, whose size is `shared`. row: which of a FITS file's images is meant.
    seconds: of CPU time. fits: how FITS is read, as FitsOptions tells. again: the bytes are those
    of the order before, and do not follow.
    count: how many images there are is asked for. last: the bytes are not asked for again.
    """

    size: int
    side: int
    interpolation: str
    resize_to: int
    keep_aspect: bool
    max_pixels: int
    large: int
    seconds: float
    place: str
    slot: int
    shared: int
    row: int = 0
    fits: dict[str, Any] | None = None
    again: bool = False
    count: bool = False
    last: bool = True


class Decoder:
    """Decodes one image after the other into slots of the shared memory `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._shared: mmap.mmap | None = None
        self._data = b""
        self._file: fits.FitsFile | None = None  # of the data, once it is open

    def answer(self, order: Order, data: bytes | None) -> dict[str, object]:
        """data: the file, or None for the one of the order before."""
        if data is not None:
            self._hold(data)
        if order.fits is not None:
            fits.preload(order.fits)
        _limit(order)
        try:
            if order.fits is not None and self._file is None:
                self._file = open_fits(self._data, order.fits, order.place)
                self._data = b""
            if order.count and self._file is not None:
                return {"rows": count_images(self._file, order.place)}
            decoded = decode_planes(
                self._data,
                Fit(order.side, order.interpolation, order.resize_to, order.keep_aspect),
                max_pixels=order.max_pixels,
                place=order.place,
                large=order.large,
                fits=self._file,
                row=order.row,
            )
        except Large as large:
            return {"large": large.pixels}
        except ServiceError as error:
            return {
                "code": error.code,
                "message": error.message,
                "worn": isinstance(error.__cause__, _ABNORMAL),
            }
        finally:
            _unlimited()
            if order.last:
                self._hold(b"")
        self._write(order, decoded.planes)
        return {"pixels": decoded.pixels}

    def _hold(self, data: bytes) -> None:
        if self._file is not None:
            self._file.close()
        self._data, self._file = data, None

    def _write(self, order: Order, pixels: bytes) -> None:
        if self._shared is None or len(self._shared) != order.shared:
            self._shared = mmap.mmap(self._fd, order.shared)
        begin = order.slot * len(pixels)
        self._shared[begin : begin + len(pixels)] = pixels


def _limit(order: Order) -> None:
    """Let this process end when the image takes more CPU time; give it no more memory than this.

    The CPU time by a timer: RLIMIT_CPU counts whole seconds.
    """
    signal.setitimer(signal.ITIMER_PROF, order.seconds)
    weight = 1 if order.fits is None else fits.WEIGHT
    pixels = weight * min(order.max_pixels, order.large)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    most = now + _EVERYDAY + _OF_FILE * order.size + _OF_PIXEL * pixels
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def _unlimited() -> None:
    signal.setitimer(signal.ITIMER_PROF, 0)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main() -> None:
    """Decode until standard input ends."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open(os.devnull, "wb") as nowhere:  # C libraries print what files make them say
        os.dup2(nowhere.fileno(), sys.stderr.fileno())
    decoder = Decoder(int(sys.argv[1]))
    connection = socket.socket(fileno=sys.stdin.fileno())
    with connection.makefile("rb") as orders:
        for line in orders:
            order = Order(**json.loads(line))
            reply = decoder.answer(order, None if order.again else orders.read(order.size))
            connection.sendall(json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
