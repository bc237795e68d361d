"""How many bytes of request bodies the process holds at once: more are refused unread."""

from __future__ import annotations

import threading

from vim_embed.errors import PayloadTooLarge, QueueFull

_RETRY_AFTER = 1


class ByteBudget:
    """Bytes that requests hold, from before their body is read until they are answered."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._held = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        return self._held

    def reserve(self, size: int) -> Reservation:
        """Room for a body of `size` bytes. Raises QueueFull."""
        reservation = Reservation(self)
        reservation.grow(size)
        return reservation

    def change(self, size: int) -> None:
        """Take `size` bytes, or give them back where negative. Raises QueueFull."""
        with self._lock:
            if size > 0 and self._held + size > self.total:
                raise bodies_full(self._held)
            self._held += size


class Reservation:
    """A request's part of the budget."""

    def __init__(self, budget: ByteBudget) -> None:
        self._budget = budget
        self._size = 0

    def grow(self, size: int) -> None:
        """Take more, or give back some. Raises QueueFull; the rest stays until `release`."""
        self._budget.change(size)
        self._size += size

    def release(self) -> None:
        """Give all of it back; once is enough."""
        size, self._size = self._size, 0
        self._budget.change(-size)


def bodies_full(held: int) -> QueueFull:
    """The refusal of a body that there is no room for."""
    return QueueFull(
        f"{held / 1e6:.0f} MB of request bodies are held already: retry after the time in "
        "Retry-After, or raise --inflight-bytes",
        retry_after=_RETRY_AFTER,
    )


def never_fits(total: int) -> PayloadTooLarge:
    """The refusal of a body that there would be no room for if it were alone."""
    return PayloadTooLarge(
        f"the body does not fit into the {total / 1e6:.0f} MB that are kept for bodies: send fewer "
        "rows per request, or raise --inflight-bytes"
    )
