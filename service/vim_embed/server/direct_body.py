"""uvicorn's HTTP protocol, with a way past its parser for large bodies.

uvicorn hands a body on in pieces that are copied three times: by the parser, into the cycle, and by
who puts them together. A body of known length can come from the socket straight into the memory
where it is wanted, which costs a third of the processor time. The application decides when, after
it has checked what it wants to check; small and chunked bodies go the usual way.
"""

from __future__ import annotations

import asyncio
from typing import Any

import httptools
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vim_embed.http.body.direct import RECEIVE_INTO, BodyTimeout


class ReceivingProtocol(HttpToolsProtocol):
    """Offers `RECEIVE_INTO` among the extensions of a request's scope."""

    _deaf = False  # what still arrives is no request

    def data_received(self, data: bytes) -> None:
        if not self._deaf:
            super().data_received(data)

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        cycle = self.cycle
        if any(queued is cycle for queued, _ in self.pipeline):
            return

        async def receive_into(buffer: memoryview, patience: BodyTimeout) -> None:
            await self._receive_into(cycle, buffer, patience)

        if not cycle.waiting_for_100_continue:
            scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]
            scope.setdefault("extensions", {})[RECEIVE_INTO] = receive_into

    async def _receive_into(
        self, cycle: RequestResponseCycle, buffer: memoryview, patience: BodyTimeout
    ) -> None:
        parsed = len(cycle.body)
        buffer[:parsed] = cycle.body
        cycle.body = bytearray()
        if cycle.more_body:
            await self._receive_rest(cycle, buffer, parsed, patience)
        cycle.message_event.clear()  # what comes next is a disconnect

    async def _receive_rest(
        self, cycle: RequestResponseCycle, buffer: memoryview, filled: int, patience: BodyTimeout
    ) -> None:
        if cycle.disconnected:
            raise ClientDisconnect
        rest = _Rest(self, buffer, filled)
        self.transport.set_protocol(rest)
        self.flow.resume_reading()
        try:
            await rest.wait(patience)
        except BaseException:
            self._deaf, cycle.keep_alive = True, False  # where would the next request begin?
            raise
        finally:
            self.transport.set_protocol(self)
            self.parser = httptools.HttpRequestParser(self)
        self.on_message_complete()


class _Rest(asyncio.BufferedProtocol):
    """Fills `buffer` from `filled` on; the connection is `http`'s before and after."""

    def __init__(self, http: ReceivingProtocol, buffer: memoryview, filled: int) -> None:
        self._http = http
        self._buffer = buffer
        self._filled = filled
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def wait(self, patience: BodyTimeout) -> None:
        """Until the buffer is full. Raises TimeoutError if no part came in time."""
        while not self._done.done():
            before = self._filled
            await asyncio.wait({self._done}, timeout=max(0.0, patience(before)))
            if self._filled == before and not self._done.done():
                raise TimeoutError
        self._done.result()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._buffer[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._filled == len(self._buffer):
            self._http.flow.pause_reading()  # until the answer: what follows is another request
            if not self._done.done():
                self._done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._done.done():
            self._done.set_exception(ClientDisconnect())
        self._http.connection_lost(exc)

    def pause_writing(self) -> None:
        self._http.pause_writing()

    def resume_writing(self) -> None:
        self._http.resume_writing()
