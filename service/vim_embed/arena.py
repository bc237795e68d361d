"""Memory that an HTTP process and the model process share: bodies are read into it once.

An anonymous file (memfd), which nobody else can open and which is gone with its last process. The
HTTP process alone decides where a body lies; the model process is told and only reads.
"""

from __future__ import annotations

import mmap
import os
from bisect import insort

_ALIGNMENT = 4096


class Arena:
    """`size` bytes of shared memory behind the file descriptor `fd`."""

    def __init__(self, fd: int, size: int) -> None:
        self.fd = fd
        self.size = size
        self._map = mmap.mmap(fd, size)
        self._free = [(0, size)]  # (offset, length), in order, never adjacent

    @classmethod
    def create(cls, size: int) -> Arena:
        """A new one; its pages cost memory from their first use on."""
        size = _rounded(size)
        fd = os.memfd_create("vim-embed-bodies")
        os.ftruncate(fd, size)
        return cls(fd, size)

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self.size - sum(length for _, length in self._free)

    def take(self, size: int) -> int | None:
        """The offset of `size` free bytes, as low as possible; None if there is no such room."""
        wanted = _rounded(max(1, size))
        for place, (offset, length) in enumerate(self._free):
            if length >= wanted:
                rest = [(offset + wanted, length - wanted)] if length > wanted else []
                self._free[place : place + 1] = rest
                return offset
        return None

    def extend(self, offset: int, size: int, wanted: int) -> bool:
        """Make what `take(size)` gave `wanted` bytes long, if those behind it are free."""
        end, more = offset + _rounded(max(1, size)), _rounded(wanted) - _rounded(max(1, size))
        for place, (start, length) in enumerate(self._free):
            if more > 0 and start == end and length >= more:
                rest = [(start + more, length - more)] if length > more else []
                self._free[place : place + 1] = rest
                return True
        return more <= 0

    def shrink(self, offset: int, size: int, wanted: int) -> None:
        """Free what `take(size)` gave beyond `wanted` bytes."""
        kept = _rounded(max(1, wanted))
        if _rounded(size) > kept:
            self.give_back(offset + kept, _rounded(size) - kept)

    def give_back(self, offset: int, size: int) -> None:
        """Free what `take(size)` gave."""
        insort(self._free, (offset, _rounded(max(1, size))))
        merged: list[tuple[int, int]] = []
        for start, length in self._free:
            if merged and sum(merged[-1]) == start:
                merged[-1] = (merged[-1][0], merged[-1][1] + length)
            else:
                merged.append((start, length))
        self._free = merged

    def view(self, offset: int, size: int) -> memoryview:
        """The bytes themselves. Raises ValueError outside the arena."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"[{offset}, {offset + size}) is outside of {self.size} bytes")
        return memoryview(self._map)[offset : offset + size]

    def close(self) -> None:
        """Give up the file; mappings that are still in use live on."""
        os.close(self.fd)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
