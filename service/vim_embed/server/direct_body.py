"""A connection's stand-in while a large body goes from the socket straight into its memory.

uvicorn hands a body on in pieces that are copied three times: by the parser, into the cycle, and by
the application. asyncio's `BufferedProtocol` copies once: a third of the processor time.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from starlette.requests import ClientDisconnect

from vim_embed.http.body.direct import BodyTimeout


class Owner(Protocol):
    """The connection that a body belongs to."""

    def body_filled(self) -> None: ...
    def connection_lost(self, exc: Exception | None) -> None: ...
    def pause_writing(self) -> None: ...
    def resume_writing(self) -> None: ...


class DirectBody(asyncio.BufferedProtocol):
    """Fills `buffer` from `filled` on; the connection is its owner's before and after."""

    def __init__(self, owner: Owner, buffer: memoryview, filled: int) -> None:
        self._owner = owner
        self._buffer = buffer
        self._filled = filled
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, body_timeout: BodyTimeout) -> None:
        """Until the buffer is full. Raises TimeoutError if no part came in time."""
        while not self._done.done():
            before = self._filled
            await asyncio.wait({self._done}, timeout=max(0.0, body_timeout(before)))
            if self._filled == before and not self._done.done():
                raise TimeoutError
        self._done.result()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self._buffer):
            self._owner.body_filled()
            if not self._done.done():
                self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ClientDisconnect())
        self._owner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        self._owner.resume_writing()
