"""One connection: uvicorn's httptools protocol with bounds, and with a way past its parser.

It knows nothing of routes. It bounds the number of connections, the size of a request's head and
the time that one takes to arrive, requests sent ahead, and the time that a client takes to read
its answer. A refused connection gets an answer in the shape of every other error, and is closed.

The state says what the next byte belongs to:

    IDLE ──first byte of a request──▶ HEAD ──blank line──▶ BODY ──last byte──▶ IDLE
    BODY ──the application gives memory for all of it──▶ DIRECT ──last byte──▶ IDLE
    any  ──refused, or a body that nobody reads to its end──▶ IGNORED

uvicorn's attributes without a promise are used (`cycle`, `flow`, `pipeline`, the keep-alive timer),
so pyproject.toml bounds its version from both sides.
"""

from __future__ import annotations

import asyncio
import enum
import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any, ClassVar, cast

import httptools
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from vim_embed.errors import (
    HeadTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from vim_embed.http.body.direct import RECEIVE_INTO, BodyTimeout
from vim_embed.http.error_shape import raw_answer
from vim_embed.server.connection_limits import Guard
from vim_embed.server.direct_body import DirectBody

# Seconds in which a refused client's further bytes are dropped, so that it can read its answer:
# closing a socket with unread bytes resets it.
_LINGER = 2.0
# Bytes that are dropped so, at most; then the connection is cut.
_LINGER_BYTES = 32 * 1024**2
# Connections that linger at once; a crowd's further ones are closed without it.
_LINGERING = 256
# Requests that a client may send before the first is answered.
_AHEAD = 16
# Seconds that a client is asked to wait where there are too many connections.
_RETRY_AFTER = 1
# The headers that say where a body ends.
_FRAMING = (b"content-length", b"transfer-encoding")


class State(enum.Enum):
    """What the next byte of a connection belongs to."""

    IDLE = "no request yet, or the next one"
    HEAD = "a request's address and headers"
    BODY = "a body, or the trailers behind it"
    DIRECT = "a body that goes straight into its memory"
    IGNORED = "nothing: it is dropped until the connection ends"


class Connection(HttpToolsProtocol):
    """One connection of the process whose `guard` is the class's."""

    guard: ClassVar[Guard]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.url = b""
        self._state = State.IDLE
        self._head_bytes = 0  # of the request at hand, trailers included
        self._loose_bytes = 0  # since the last head or piece of a body
        self._keep_alive = True
        self._resuming = False  # the head that the parser reads is ours, of a declined upgrade
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast(asyncio.Transport, transport)
        self._wire = wire
        self._outward = _Closing(wire, self._close)
        super().connection_made(cast(asyncio.Transport, self._outward))
        if len(self.connections) > self.guard.limits.connections:
            self._state = State.IGNORED  # its request is on the way
            self.connections.discard(self)
            self._refuse(TooManyConnections("too many connections", retry_after=_RETRY_AFTER))
        else:
            self._expect_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if "linger" in self._timers:
            self.guard.lingering -= 1
        for timer in self._timers.values():
            timer.cancel()

    def data_received(self, data: bytes) -> None:
        self._loose_bytes += len(data)
        if self._state is State.IGNORED or self.transport.is_closing():
            if self._loose_bytes > _LINGER_BYTES:
                self._wire.abort()
            return
        self._unset_keepalive_if_required()
        self._parse(data)
        most = self.guard.limits.head_bytes
        if self._loose_bytes > most or self._head_bytes > most:
            self._refuse(_head_too_large(most))
        elif self._head_is_due:
            self._expect_head()

    def _parse(self, data: bytes) -> None:
        try:
            while True:
                try:
                    self.parser.feed_data(data)
                    return
                except httptools.HttpParserUpgrade as offer:
                    if self.transport.is_closing():
                        return
                    data = data[offer.args[0] :]  # what follows the head
                    self._decline_upgrade()
        except httptools.HttpParserError:
            self._refuse(MalformedRequest("Invalid HTTP request received."))

    def _decline_upgrade(self) -> None:
        """Go on with the body of a request that offers another protocol (RFC 9110, 7.8).

        The parser ends such a request at its head, as if the body were the other protocol. A new
        one reads a head with the same lengths and no offer, of which nothing is told to anybody,
        and so knows where the body ends.
        """
        version = self.scope["http_version"].encode()
        framing = [name + b": " + value for name, value in self.headers if name in _FRAMING]
        lines = [b"POST / HTTP/" + version, *framing, b"", b""]
        self._renew_parser()
        self._resuming = True
        self.parser.feed_data(b"\r\n".join(lines))

    def _renew_parser(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own

    def on_message_begin(self) -> None:
        if self._resuming:
            return
        self._state, self._head_bytes = State.HEAD, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        if self._resuming:
            return
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._resuming:
            return
        self._head_bytes += len(name) + len(value) + 4
        if self._state is State.HEAD:  # trailers are dropped
            super().on_header(name, value.strip(b" \t"))  # blanks around are no part of it

    def on_headers_complete(self) -> None:
        if self._resuming:
            self._resuming = False
            return
        self._stop("head")
        if self._head_bytes > self.guard.limits.head_bytes:
            self._refuse(_head_too_large(self.guard.limits.head_bytes))
        elif self.parser.get_method() == b"CONNECT":
            self._refuse(MalformedRequest("this is no proxy: CONNECT is not taken"))
        elif any(n == b"transfer-encoding" and v.lower() != b"chunked" for n, v in self.headers):
            self._refuse(MalformedRequest("of transfer codings, chunked alone is taken"))
        if self.transport.is_closing():
            return
        self._state, self._loose_bytes = State.BODY, 0
        self._take_over_target()
        super().on_headers_complete()
        self._offer_receive_into()
        self._keep_alive = self.cycle.keep_alive
        self.cycle.keep_alive = False  # an answer before the end of the body ends the connection
        if len(self.pipeline) > _AHEAD:
            self.guard.refused("requests_ahead")
            self._wire.abort()

    def _take_over_target(self) -> None:
        """A target that is more or less than a path. `OPTIONS *` asks for the server as a whole; a
        host in the target counts instead of the header (RFC 9112, 3.2.2 and 3.2.4).
        """
        if self.url == b"*" and self.parser.get_method() == b"OPTIONS":
            self.url = b"/"
        if not self.url.startswith(b"/"):
            parsed = httptools.parse_url(self.url)  # raises what ends in 400
            if not parsed.host:
                raise ValueError("a target without a path")
            port = b":%d" % parsed.port if parsed.port else b""
            self.headers[:] = [each for each in self.headers if each[0] != b"host"]
            self.headers.append((b"host", parsed.host + port))

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.parser.should_upgrade() and not self.transport.is_closing():
            return  # the body is still to come
        self._state = State.IDLE
        if not self.transport.is_closing():
            self.cycle.keep_alive = self._keep_alive
            super().on_message_complete()

    def _offer_receive_into(self) -> None:
        """Let the application take the body straight into its memory (`http/body/direct.py`).

        The application decides when, after it has checked what it wants to check; small and chunked
        bodies go the usual way. Not for a request that waits for the answers before it, whose body
        the parser has to read, nor where the client waits for a word.
        """
        cycle = self.cycle
        if any(queued is cycle for queued, _ in self.pipeline) or cycle.waiting_for_100_continue:
            return

        async def receive_into(buffer: memoryview, body_timeout: BodyTimeout) -> None:
            await self._receive_into(cycle, buffer, body_timeout)

        scope: dict[str, Any] = cycle.scope  # type: ignore[assignment]
        scope.setdefault("extensions", {})[RECEIVE_INTO] = receive_into

    async def _receive_into(
        self, cycle: RequestResponseCycle, buffer: memoryview, body_timeout: BodyTimeout
    ) -> None:
        parsed = len(cycle.body)
        buffer[:parsed] = cycle.body
        cycle.body = bytearray()
        if cycle.more_body:
            await self._receive_rest(cycle, buffer, parsed, body_timeout)
        cycle.message_event.clear()  # what comes next is a disconnect

    async def _receive_rest(
        self,
        cycle: RequestResponseCycle,
        buffer: memoryview,
        filled: int,
        body_timeout: BodyTimeout,
    ) -> None:
        if cycle.disconnected:
            raise ClientDisconnect
        rest = DirectBody(self, buffer, filled)
        self._state = State.DIRECT
        self.transport.set_protocol(rest)
        self.flow.resume_reading()
        try:
            await rest.wait(body_timeout)
        except BaseException:
            # Nobody knows where in the bytes to come the next request would begin.
            self._state, cycle.keep_alive = State.IGNORED, False
            raise
        finally:
            self.transport.set_protocol(self)
            self._renew_parser()
        self.on_message_complete()

    def body_filled(self) -> None:
        self.flow.pause_reading()  # until the answer: what follows is another request

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer()

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self._answering and not self.transport.is_closing():
            self._stop("answer")

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.flow.write_paused and not self.transport.is_closing():
            self._stop("answer")

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _head_is_due(self) -> bool:
        """Whether a head has begun, or blank lines before one, that has a time to arrive in."""
        reading = self._state in (State.IDLE, State.HEAD)
        return reading and not self._answering and self.timeout_keep_alive_task is None

    def _expect_head(self) -> None:
        if "head" not in self._timers:
            seconds = self.guard.limits.head_seconds
            self._timers["head"] = self.loop.call_later(seconds, self._head_late)

    def _head_late(self) -> None:
        self._stop("head")
        if self._state is State.IDLE:
            self.transport.close()
            return
        seconds = self.guard.limits.head_seconds
        self._refuse(RequestTimeout(f"the request's head did not arrive within {seconds:g} s"))

    def _refuse(self, error: ServiceError) -> None:
        """Answer with an error and close; after the answer to a request that came whole before."""
        if self.transport.is_closing():
            return
        self.guard.refused(error.code)
        if self._answering:
            if not self.cycle.more_body:
                self._state, self.cycle.keep_alive = State.IGNORED, False
                return
            if self.pipeline or self.cycle.response_started:
                self._wire.abort()  # it would be read as the answer to another request
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(raw_answer(error, self.url.decode("latin-1")))
        self.transport.close()

    def _close(self) -> None:
        """Close; while a request still arrives, only after the client could read the answer."""
        self._stop("head")
        if self._state is not State.IDLE and self.guard.lingering < _LINGERING:
            self.guard.lingering += 1
            self._timers["linger"] = self.loop.call_later(_LINGER, self._wire.close)
            self.flow.resume_reading()
            if self._wire.can_write_eof():
                self._wire.write_eof()
        else:
            self._wire.close()
        self._watch_answer()

    def _watch_answer(self) -> None:
        """Break off where a client takes its answer too slowly."""
        if "answer" not in self._timers:
            self._check_answer(None)

    def _check_answer(self, before: int | None) -> None:
        """before: bytes that the client had taken when this was last looked at."""
        left, limits = self._wire.get_write_buffer_size(), self.guard.limits
        taken = self._outward.written - left
        if left == 0:
            self._stop("answer")
        elif before is not None and taken - before < limits.least_rate * limits.stall_seconds:
            self.guard.refused("answer_not_read")
            _reset_at_close(self._wire)
            self._wire.abort()
        else:
            self._timers["answer"] = self.loop.call_later(
                limits.stall_seconds, self._check_answer, taken
            )

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


def connection_class(guard: Guard) -> type[asyncio.Protocol]:
    """The class for uvicorn's `http`."""
    return type("GuardedConnection", (Connection,), {"guard": guard})


class _Closing:
    """A transport whose `close` is somebody else's; nothing is written after it."""

    def __init__(self, wire: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._wire = wire
        self._on_close = on_close
        self._closed = False
        self.written = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def write(self, data: bytes) -> None:
        if not self._closed:
            self.written += len(data)
            self._wire.write(data)

    def is_closing(self) -> bool:
        return self._closed or self._wire.is_closing()

    def close(self) -> None:
        if not self.is_closing():
            self._closed = True
            self._on_close()


def _reset_at_close(wire: asyncio.Transport) -> None:
    """Let the system drop what it holds for the client, megabytes, instead of waiting for it to be
    taken, minutes.
    """
    connection = wire.get_extra_info("socket")
    if connection is not None:
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _head_too_large(most: int) -> HeadTooLarge:
    return HeadTooLarge(f"the request's address and headers are over the limit of {most} bytes")
