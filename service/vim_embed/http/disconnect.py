"""Work that ends when its client leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

T = TypeVar("T")


async def gone_first(
    request: Request, work: asyncio.Future[Any], seconds: float | None = None
) -> bool:
    """Wait for the work, so many seconds at most; whether the client left before its end.

    For requests whose body was read whole: after it only a disconnect comes.
    """
    left = asyncio.ensure_future(request.receive())
    pending: set[asyncio.Future[Any]] = {work, left}
    try:
        await asyncio.wait(pending, timeout=seconds, return_when="FIRST_COMPLETED")
        return left.done() and not work.done()
    finally:
        left.cancel()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """What the work gives. Ends it, and raises ClientDisconnect, when the client leaves first."""
    task = asyncio.ensure_future(work)
    try:
        if await gone_first(request, task):
            raise ClientDisconnect
        return await task
    finally:
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
