"""Asks the system for many small pieces of a file at once.

A window of a mosaic is a piece of each of its rows. Where they are not in memory, the disk or the
network would be waited for row by row.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress

_POSSIBLE = hasattr(os, "posix_fadvise") and hasattr(os, "RWF_NOWAIT")  # Linux


def ask_for(file: int, starts: Sequence[int], length: int) -> None:
    """Have pieces of `length` bytes of an open file read, unless they seem to be in memory.

    The one in the middle tells. Returns before they are there, and raises nothing.
    """
    if not _POSSIBLE or not starts or _in_memory(file, starts[len(starts) // 2], length):
        return
    with suppress(OSError):  # advice that a file system does not take
        for start in starts:
            os.posix_fadvise(file, start, length, os.POSIX_FADV_WILLNEED)


def _in_memory(file: int, start: int, length: int) -> bool:
    """False too where the file system cannot tell, as those of networks."""
    try:
        return os.preadv(file, [bytearray(length)], start, os.RWF_NOWAIT) == length
    except OSError:
        return False
