"""The memory that a request takes beside its body: what its bytes become while they are read.

All of it is counted in the arena of bodies, so `--inflight-bytes` bounds it too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vim_embed.errors import QueueFull
from vim_embed.http.body.arena import Arena, Holder
from vim_embed.http.body.buffer import BodyBuffer, never_fits


class Workspace:
    """Memory of one request. All methods raise QueueFull, or PayloadTooLarge where it never fits.

    Any thread may call it, but not several at once.
    """

    def __init__(self, arena: Arena, body_bytes: int = 0, holder: Holder | None = None) -> None:
        """body_bytes: what the request holds in the arena already. holder: the request."""
        self._arena = arena
        self._holder = holder
        self._own = body_bytes
        self._buffers: list[BodyBuffer] = []

    def allocate(self, size: int) -> memoryview:
        """`size` bytes of the arena, which stay until `release`."""
        buffer = BodyBuffer(self._arena, self._holder)
        with self._refusing(size):
            memory = buffer.allocate(size)
        self._keep(buffer, size)
        return memory

    def count(self, size: int) -> None:
        """Count `size` bytes that lie elsewhere, until `release`."""
        buffer = BodyBuffer(self._arena, self._holder)
        with self._refusing(size):
            buffer.count(size)
        self._keep(buffer, size)

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """Count `size` bytes that lie elsewhere, for a while."""
        self.count(size)
        buffer = self._buffers[-1]
        try:
            yield
        finally:
            self._buffers.remove(buffer)
            buffer.release()
            self._own -= size

    def _keep(self, buffer: BodyBuffer, size: int) -> None:
        self._buffers.append(buffer)
        self._own += size

    def release(self) -> None:
        """Give all of it back; once is enough."""
        for buffer in self._buffers:
            buffer.release()
        self._buffers.clear()

    @contextmanager
    def _refusing(self, size: int) -> Iterator[None]:
        """Turn "not now" into "never" where the request alone needs more than there is."""
        try:
            yield
        except QueueFull as error:
            if self._own + size > self._arena.size:
                raise never_fits(self._arena.size) from error
            raise
