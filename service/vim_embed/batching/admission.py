"""Whether the queue takes one more request. Pure: who calls it holds the queue's lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vim_embed.batching.request import EmbedRequest
from vim_embed.errors import PayloadTooLarge, QueueFull, ServiceError, ShareFull

_LONGEST_WAIT = 60  # seconds; beyond that an estimate is worth nothing


@dataclass(frozen=True)
class QueueLimits:
    """Rows and bytes that may wait at once, and the share of both that one client may fill."""

    rows: int
    bytes: int
    client_share: float = 1.0


def refusal(
    new: EmbedRequest,
    waiting: Sequence[EmbedRequest],
    limits: QueueLimits,
    retry_after: Callable[[int], int],
) -> ServiceError | None:
    """Why `new` is not taken beside the requests that wait, or None if it is.

    retry_after: seconds until so many waiting rows are worth another try.
    """
    if new.rows > limits.rows or new.pixels.nbytes > limits.bytes:
        return PayloadTooLarge(
            f"{new.rows} rows of {new.pixels.nbytes / 1e6:.0f} MB are more than the "
            f"whole queue holds ({limits.rows} rows, {limits.bytes / 1e6:.0f} MB): "
            f"send fewer rows per request"
        )
    if _exceeds(waiting, new, limits, 1.0):
        rows = sum(request.waiting for request in waiting)
        return QueueFull(
            f"{rows} rows are waiting already: retry after the time in Retry-After",
            retry_after=retry_after(rows),
        )
    # A client that is alone may exceed its share: it takes the place of nobody's rows. Its next
    # request then waits until these are fewer.
    own = [request for request in waiting if new.client and request.client == new.client]
    if own and _exceeds(own, new, limits, limits.client_share):
        rows = sum(request.waiting for request in own)
        return ShareFull(
            f"{rows} rows of this client are waiting already, its share of the queue "
            "(--client-share): retry after the time in Retry-After",
            retry_after=retry_after(rows),
        )
    return None


def _exceeds(
    waiting: Sequence[EmbedRequest], new: EmbedRequest, limits: QueueLimits, share: float
) -> bool:
    rows = sum(request.waiting for request in waiting) + new.rows
    held = sum(request.pixels.nbytes for request in waiting) + new.pixels.nbytes
    return rows > share * limits.rows or held > share * limits.bytes


def seconds_until_half(rows: int, rows_per_second: float) -> int:
    """Whole seconds until half of the rows are done at this rate, 1 to 60; 1 while none is known.

    Half, because who is refused now competes with whoever comes meanwhile: a client that waited
    for an empty queue would find it filled by others.
    """
    if not rows_per_second:
        return 1
    return int(min(_LONGEST_WAIT, max(1, rows / 2 / rows_per_second)))
