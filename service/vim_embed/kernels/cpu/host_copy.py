"""Rows of several arrays into one buffer, or rounded, by a few threads of host_copy.cpp, which may
send the buffer's beginning to a device while they fill the rest.

Called through ctypes, which releases the interpreter: threads of Python would wait for it.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from vim_embed.kernels.cpu import compile as native
from vim_embed.types.pixels import PixelArray
from vim_embed.types.preprocessing import Rounding

SOURCE = Path(__file__).with_name("host_copy.cpp")
_MOST_THREADS = 8  # beside HTTP processes, which need the other cores
_MOST_ALONE = 16  # a third faster than 8
_SLICE = 2 * 1024 * 1024  # bytes that are sent at once


class Sending(ctypes.Structure):
    """The way of a buffer to a device, while it is filled; mirrors `Sending` in host_copy.cpp.

    `sent`: bytes that are on their way after the copy, the first ones; the rest is for the caller
    to send.
    """

    _fields_ = (
        ("send", ctypes.c_void_p),
        ("to", ctypes.c_uint64),
        ("stream", ctypes.c_void_p),
        ("slice", ctypes.c_int64),
        ("sent", ctypes.c_int64),
        ("status", ctypes.c_int64),
    )
    sent: int
    status: int

    @classmethod
    def by(cls, send: ctypes.c_void_p, to: int, stream: int) -> Sending:
        """send: cuMemcpyHtoDAsync, or a C function like it. to: an address on the device."""
        return cls(send, to, stream, _SLICE, 0, 0)

    def check(self) -> None:
        """Raise RuntimeError where a call of `send` failed."""
        if self.status:
            raise RuntimeError(f"CUDA driver: error {self.status} as rows were sent to the device")


class ParallelCopy:
    """`np.concatenate` into an array that a device reads next; from any thread."""

    def __init__(self, *, alone: bool = False) -> None:
        """alone: on cores that nothing else keeps busy. Raises NativeUnavailable where
        host_copy.cpp cannot be built.
        """
        cores = os.cpu_count() or 1
        threads = min(_MOST_ALONE, cores) if alone else min(_MOST_THREADS, cores // 2)
        self._library, self._helpers = _helpers(max(2, threads))

    def __call__(
        self, parts: Sequence[PixelArray], out: PixelArray, sending: Sending | None = None
    ) -> None:
        """parts: (n_i, ...) of `out`'s dtype. out: (sum of n_i, ...), C-contiguous.

        Raises ValueError for parts that do not fill `out`, RuntimeError where they are not sent.
        """
        rows = [np.ascontiguousarray(part) for part in parts]
        _check(rows, out)
        starts = (ctypes.c_void_p * len(rows))(*(part.ctypes.data for part in rows))
        sizes = (ctypes.c_int64 * len(rows))(*(part.nbytes for part in rows))
        to = ctypes.byref(sending) if sending is not None else None
        self._library.vim_copy(self._helpers, out.ctypes.data, starts, sizes, len(rows), to)
        if sending is not None:
            sending.check()

    def rounded(
        self, rows: PixelArray, out: PixelArray, how: Rounding, sending: Sending | None = None
    ) -> bool:
        """Fill `out` (B, C, H, W) int16 with the bits of the rounded float32 rows.

        False where this CPU has no instructions for it, or a number is not finite; `out` is then
        undefined. Raises ValueError for arrays that are not so, or not C-contiguous, RuntimeError
        where they are not sent.
        """
        fits = rows.shape == out.shape and rows.flags.c_contiguous and out.flags.c_contiguous
        if not (fits and rows.dtype == np.float32 and out.dtype == np.int16):
            raise ValueError(
                f"rows {rows.shape} {rows.dtype} do not fill {out.shape} {out.dtype} as bits"
            )
        if not self._library.vim_rounds():
            return False
        channels, planes = rows.shape[1], rows.shape[0] * rows.shape[1]
        offsets = (ctypes.c_float * channels)(*how.offset)
        count = rows[0, 0].size
        bfloat = int(how.dtype == "bfloat16")
        finite: int = self._library.vim_copy_rounded(
            *(self._helpers, out.ctypes.data, rows.ctypes.data, planes, count),
            *(offsets, channels, bfloat),
            ctypes.byref(sending) if sending is not None else None,
        )
        if sending is not None:
            sending.check()
        return bool(finite)


def _check(parts: Sequence[PixelArray], out: PixelArray) -> None:
    fits = all(part.dtype == out.dtype and part.shape[1:] == out.shape[1:] for part in parts)
    if not (fits and sum(map(len, parts)) == len(out) and out.flags.c_contiguous):
        shapes = ", ".join(f"{part.shape} {part.dtype}" for part in parts)
        raise ValueError(f"parts of {shapes} do not fill {out.shape} {out.dtype}")


@cache
def _helpers(threads: int) -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    """The library, and so many threads of it, the caller's counted."""
    library = native.load(SOURCE).library
    library.vim_copy_helpers.restype = ctypes.c_void_p
    library.vim_copy_helpers.argtypes = [ctypes.c_int64]
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.vim_copy.restype = None
    library.vim_copy.argtypes = [
        *(pointer, pointer, ctypes.POINTER(pointer), ctypes.POINTER(number), number),
        ctypes.POINTER(Sending),
    ]
    library.vim_copy_rounded.argtypes = [
        *(pointer, pointer, pointer, number, number),
        *(ctypes.POINTER(ctypes.c_float), number, ctypes.c_int),
        ctypes.POINTER(Sending),
    ]
    return library, ctypes.c_void_p(library.vim_copy_helpers(threads - 1))
