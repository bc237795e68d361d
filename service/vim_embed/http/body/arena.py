"""The memory that bodies are read into: its size bounds them, and the same pages serve again.

An anonymous file (memfd), which nobody else can open and which is gone with its last process. Where
an HTTP process shares one with the model process, it alone decides where a body lies; the model
process is told and only reads.

It also keeps one client from taking all of it: several requests of a client together get at most
its share, so that others always find room.
"""

from __future__ import annotations

import mmap
import os
import threading
from bisect import insort
from contextlib import suppress
from dataclasses import dataclass

_ALIGNMENT = 4096


@dataclass
class Holder:
    """One request: whose it is, and how many bytes of an arena it has. client "": nobody's."""

    client: str = ""
    held: int = 0


class Arena:
    """`size` bytes behind the file descriptor `fd`, or behind none if it is -1."""

    def __init__(self, fd: int, size: int, client_share: float = 1.0) -> None:
        """client_share: of the bytes, how much all requests of one client may have together."""
        self.fd = fd
        self.size = size
        self.client_bytes = int(client_share * size)
        self._of_clients: dict[str, int] = {}
        self._map = mmap.mmap(fd, size)
        self._free = [(0, size)]  # (offset, length), in order, never adjacent
        self._reached = self._touched = 0  # ends: since the last trim, of pages that cost memory
        self._lock = threading.Lock()  # `trim` comes from another thread

    @classmethod
    def create(cls, size: int, client_share: float = 1.0) -> Arena:
        """A new one; its pages cost memory from their first use on."""
        size = _rounded(size)
        fd = os.memfd_create("vim-embed-bodies")
        os.ftruncate(fd, size)
        return cls(fd, size, client_share)

    @classmethod
    def private(cls, size: int, client_share: float = 1.0) -> Arena:
        """A new one for this process alone."""
        if not hasattr(os, "memfd_create"):
            return cls(-1, _rounded(size), client_share)
        arena = cls.create(size, client_share)
        arena.close()
        return arena

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        with self._lock:
            return self.size - sum(length for _, length in self._free)

    def beyond_share(self, size: int, holder: Holder) -> int:
        """What the client's requests hold, if `size` bytes more are over its share; else 0.

        A request that is its client's only one may have more: it waits for none of its own.
        """
        with self._lock:
            return 0 if self._admits(_rounded(max(1, size)), holder) else self._held_by(holder)

    def take(self, size: int, holder: Holder | None = None) -> int | None:
        """The offset of `size` free bytes, as low as possible; None if there is no such room, or
        if they are beyond the share of the holder's client.
        """
        wanted = _rounded(max(1, size))
        with self._lock:
            if not self._admits(wanted, holder):
                return None
            for place, (offset, length) in enumerate(self._free):
                if length >= wanted:
                    self._cut(place, wanted)
                    self._note(wanted, holder)
                    return offset
        return None

    def count(self, size: int, holder: Holder | None = None) -> int | None:
        """Take `size` bytes that nobody writes to, as high as possible: they cost no memory, and
        what is written to stays together at the low end.
        """
        wanted = _rounded(max(1, size))
        with self._lock:
            if not self._admits(wanted, holder):
                return None
            for place in reversed(range(len(self._free))):
                offset, length = self._free[place]
                if length >= wanted:
                    rest = [(offset, length - wanted)] if length > wanted else []
                    self._free[place : place + 1] = rest
                    self._note(wanted, holder)
                    return offset + length - wanted
        return None

    def extend(self, offset: int, size: int, wanted: int, holder: Holder | None = None) -> bool:
        """Make what `take(size)` gave `wanted` bytes long, if those behind it are free."""
        end, more = offset + _rounded(max(1, size)), _rounded(wanted) - _rounded(max(1, size))
        with self._lock:
            if more > 0 and not self._admits(more, holder):
                return False
            for place, (start, length) in enumerate(self._free):
                if more > 0 and start == end and length >= more:
                    self._cut(place, more)
                    self._note(more, holder)
                    return True
        return more <= 0

    def shrink(self, offset: int, size: int, wanted: int, holder: Holder | None = None) -> None:
        """Free what `take(size)` gave beyond `wanted` bytes."""
        kept = _rounded(max(1, wanted))
        if _rounded(size) > kept:
            self.give_back(offset + kept, _rounded(size) - kept, holder)

    def give_back(self, offset: int, size: int, holder: Holder | None = None) -> None:
        """Free what `take(size)` gave."""
        with self._lock:
            self._note(-_rounded(max(1, size)), holder)
            insort(self._free, (offset, _rounded(max(1, size))))
            merged: list[tuple[int, int]] = []
            for start, length in self._free:
                if merged and sum(merged[-1]) == start:
                    merged[-1] = (merged[-1][0], merged[-1][1] + length)
                else:
                    merged.append((start, length))
            self._free = merged

    def trim(self) -> None:
        """Give the system the pages beyond what was taken since the last call."""
        with self._lock:
            if self._touched > self._reached and hasattr(mmap, "MADV_REMOVE"):
                with suppress(OSError):  # where the system cannot
                    length = self._touched - self._reached
                    self._map.madvise(mmap.MADV_REMOVE, self._reached, length)
            self._touched = self._reached
            last = self._free[-1] if self._free else (self.size, 0)
            self._reached = last[0] if sum(last) == self.size else self.size

    def view(self, offset: int, size: int) -> memoryview:
        """The bytes themselves. Raises ValueError outside the arena."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ValueError(f"[{offset}, {offset + size}) is outside of {self.size} bytes")
        return memoryview(self._map)[offset : offset + size]

    def close(self) -> None:
        """Give up the file; mappings that are still in use live on."""
        fd, self.fd = self.fd, -1
        os.close(fd)

    def _admits(self, wanted: int, holder: Holder | None) -> bool:
        if holder is None or not holder.client:
            return True
        held = self._held_by(holder)
        return held == holder.held or held + wanted <= self.client_bytes

    def _held_by(self, holder: Holder) -> int:
        return self._of_clients.get(holder.client, 0)

    def _note(self, size: int, holder: Holder | None) -> None:
        """So many bytes more, or fewer, of a request."""
        if holder is None or not holder.client:
            return
        holder.held += size
        held = self._held_by(holder) + size
        self._of_clients[holder.client] = held
        if not held:
            del self._of_clients[holder.client]

    def _cut(self, place: int, size: int) -> None:
        """Take the first `size` bytes of a free extent."""
        offset, length = self._free[place]
        end = offset + size
        self._free[place : place + 1] = [(end, length - size)] if length > size else []
        self._reached = max(self._reached, end)
        self._touched = max(self._touched, end)


def _rounded(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT
