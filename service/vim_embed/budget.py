"""How many bytes of request bodies the process holds at once: more are refused unread."""

from __future__ import annotations

import threading
from collections.abc import Callable

from vim_embed.errors import PayloadTooLarge, QueueFull


class ByteBudget:
    """Bytes that requests hold, from before their body is read until they are answered."""

    def __init__(self, total: int, retry_after: Callable[[], int | None] = lambda: None) -> None:
        """retry_after: seconds until there may be room."""
        self.total = total
        self._retry_after = retry_after
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
            held = self._held
            fits = size <= 0 or held + size <= self.total
            self._held += size if fits else 0
        if not fits:
            raise bodies_full(held, self._retry_after())


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


def bodies_full(held: int, retry_after: int | None = None) -> QueueFull:
    """The refusal of a body that there is no room for."""
    return QueueFull(
        f"{held / 1e6:.0f} MB of request bodies are held already: retry after the time in "
        "Retry-After, or raise --inflight-bytes",
        retry_after=retry_after,
    )


def never_fits(total: int) -> PayloadTooLarge:
    """The refusal of a body that there would be no room for if it were alone."""
    return PayloadTooLarge(
        f"the body does not fit into the {total / 1e6:.0f} MB that are kept for bodies: send fewer "
        "rows per request, or raise --inflight-bytes"
    )
