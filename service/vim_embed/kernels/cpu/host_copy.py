"""Rows of several arrays into one buffer, or rounded, by a few threads of host_copy.cpp.

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
_MOST_THREADS = 8  # 16 are a fifth faster, and take the cores that HTTP needs


class ParallelCopy:
    """`np.concatenate` into an array that a device reads next; from any thread."""

    def __init__(self) -> None:
        """Raises NativeUnavailable where host_copy.cpp cannot be built."""
        self._library, self._helpers = _helpers()

    def __call__(self, parts: Sequence[PixelArray], out: PixelArray) -> None:
        """parts: (n_i, ...) of `out`'s dtype. out: (sum of n_i, ...), C-contiguous.

        Raises ValueError for parts that do not fill `out`.
        """
        rows = [np.ascontiguousarray(part) for part in parts]
        _check(rows, out)
        starts = (ctypes.c_void_p * len(rows))(*(part.ctypes.data for part in rows))
        sizes = (ctypes.c_int64 * len(rows))(*(part.nbytes for part in rows))
        self._library.vim_copy(self._helpers, out.ctypes.data, starts, sizes, len(rows))

    def rounded(self, rows: PixelArray, out: PixelArray, how: Rounding) -> bool:
        """Fill `out` (B, C, H, W) int16 with the bits of the rounded float32 rows.

        False where this CPU has no instructions for it, or a number is not finite; `out` is then
        undefined. Raises ValueError for arrays that are not so, or not C-contiguous.
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
        )
        return bool(finite)


def _check(parts: Sequence[PixelArray], out: PixelArray) -> None:
    fits = all(part.dtype == out.dtype and part.shape[1:] == out.shape[1:] for part in parts)
    if not (fits and sum(map(len, parts)) == len(out) and out.flags.c_contiguous):
        shapes = ", ".join(f"{part.shape} {part.dtype}" for part in parts)
        raise ValueError(f"parts of {shapes} do not fill {out.shape} {out.dtype}")


@cache
def _helpers() -> tuple[ctypes.CDLL, ctypes.c_void_p]:
    library = native.load(SOURCE).library
    library.vim_copy_helpers.restype = ctypes.c_void_p
    library.vim_copy_helpers.argtypes = [ctypes.c_int64]
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.vim_copy.restype = None
    library.vim_copy.argtypes = [
        *(pointer, pointer, ctypes.POINTER(pointer), ctypes.POINTER(number), number),
    ]
    library.vim_copy_rounded.argtypes = [
        *(pointer, pointer, pointer, number, number),
        *(ctypes.POINTER(ctypes.c_float), number, ctypes.c_int),
    ]
    threads = max(2, min(_MOST_THREADS, (os.cpu_count() or 1) // 2))
    return library, ctypes.c_void_p(library.vim_copy_helpers(threads - 1))
