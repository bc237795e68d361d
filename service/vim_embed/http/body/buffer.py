"""Where a body is kept while it comes in and until it is answered. Knows nothing of HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vim_embed.errors import PayloadTooLarge, QueueFull, ShareFull
from vim_embed.http.body.arena import Arena, Holder


class BodyBuffer:
    """The memory of one body in an arena, of a length that is known before or not.

    All raise QueueFull, or PayloadTooLarge where the body would not fit if it were alone.
    """

    def __init__(self, arena: Arena, holder: Holder | None = None) -> None:
        self._arena = arena
        self._holder = holder or Holder()
        self._offset = 0
        self._capacity = 0  # taken from the arena
        self._filled = 0
        self._working = 0

    @property
    def place(self) -> tuple[int, int]:
        """Offset and size, once there is something."""
        return self._offset, self._filled

    def allocate(self, size: int) -> memoryview:
        """All of it at once."""
        self._offset, self._capacity, self._filled = self._taken(size), size, size
        return self._arena.view(self._offset, size)

    def append(self, data: bytes) -> None:
        """The next part of a body without a known length."""
        end = self._filled + len(data)
        if end > self._capacity:
            self._widen(end)
        self._arena.view(self._offset, end)[self._filled :] = data
        self._filled = end

    def whole(self) -> memoryview:
        """What was appended; what was taken beyond it goes back."""
        self._arena.shrink(self._offset, self._capacity, self._filled, self._holder)
        self._capacity = self._filled
        return self._arena.view(self._offset, self._filled)

    @contextmanager
    def working(self, size: int) -> Iterator[None]:
        """Count the working memory of reading the body, too."""
        offset = self._taken(size, written=False)
        self._working = size
        try:
            yield
        finally:
            self._arena.give_back(offset, size, self._holder)
            self._working = 0

    def release(self) -> None:
        """Give all of it back; once is enough."""
        if self._capacity:
            self._arena.give_back(self._offset, self._capacity, self._holder)
            self._capacity = 0

    def count(self, size: int) -> None:
        """Count `size` bytes that lie elsewhere."""
        self._offset, self._capacity = self._taken(size, written=False), size

    def _taken(self, size: int, *, written: bool = True) -> int:
        take = self._arena.take if written else self._arena.count
        offset = take(size, self._holder)
        if offset is not None:
            return offset
        if size + self._working > self._arena.size:
            raise never_fits(self._arena.size)
        raise no_room(self._arena, size, self._holder)

    def _widen(self, size: int) -> None:
        """In place if what follows is free; else in another place with room for as much again."""
        if self._capacity and self._arena.extend(self._offset, self._capacity, size, self._holder):
            self._capacity = size
            return
        wanted = 2 * size if self._capacity else size
        offset = self._arena.take(wanted, self._holder)
        if offset is None:
            offset, wanted = self._taken(size), size
        moved = self._arena.view(self._offset, self._filled)
        self._arena.view(offset, self._filled)[:] = moved
        self.release()
        self._offset, self._capacity = offset, wanted


def no_room(arena: Arena, size: int, holder: Holder) -> QueueFull:
    """Why `size` bytes have no room: the client has its share, or the whole is in use."""
    own = arena.beyond_share(size, holder)
    if own:
        return ShareFull(
            f"{own / 1e6:.0f} MB of bodies and answers of this client are held already, of a share "
            f"of {arena.client_bytes / 1e6:.0f} MB (--client-share of --inflight-bytes): retry "
            "after the time in Retry-After, or send fewer requests at once"
        )
    return QueueFull(
        f"{arena.held / 1e6:.0f} MB of bodies and of answers that clients have not taken are held "
        "already: retry after the time in Retry-After, or raise --inflight-bytes"
    )


def never_fits(total: int) -> PayloadTooLarge:
    """What would not even fit if it were alone in an arena of `total` bytes."""
    return PayloadTooLarge(
        f"the body does not fit into the {total / 1e6:.0f} MB that are kept for bodies: send fewer "
        "rows per request, or raise --inflight-bytes"
    )
