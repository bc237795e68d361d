"""Bounds what one client, or a crowd of them, can hold open: uvicorn has no such limits.

A subclass of uvicorn's httptools protocol that knows nothing of routes. It bounds the number of
connections, the size of a request's head and the time that one takes to arrive, requests sent
ahead, and the time that a client takes to read its answer. A refused connection gets an answer in
the shape of every other error, and is closed.
"""

from __future__ import annotations

import asyncio
import http
import json
import logging
import resource
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from vim_embed.errors import (
    HeadTooLarge,
    MalformedRequest,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from vim_embed.server.direct_body import ReceivingProtocol
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_LINGER = 2.0  # seconds in which what a refused client still sends is dropped,
_LINGER_BYTES = 32 * 1024**2  # and bytes
_LINGERING = 256  # connections that may do so at once
_AHEAD = 16  # requests that may be sent before the first is answered
_LOG_EVERY = 10.0
_RETRY_AFTER = 1
_OTHER_FILES = 512


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take: their number, bytes of a head, seconds, bytes a second."""

    connections: int
    head_bytes: int
    head_seconds: float
    stall_seconds: float
    least_rate: float

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        return cls(
            settings.max_connections,
            settings.max_header_bytes,
            settings.header_timeout,
            settings.body_timeout,
            settings.least_rate,
        )


def allow_open_files(limits: ConnectionLimits) -> None:
    """Let this process, and those it starts, have so many connections and some files besides.

    Raises ValueError that names the fix.
    """
    needed = limits.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{limits.connections} connections need {needed} open files, of which this system "
            f"allows {hard}: raise `ulimit -n`, or lower --max-connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class Guard:
    """What the connections of one process share: the limits, and how many were refused."""

    def __init__(
        self, limits: ConnectionLimits, on_refused: Callable[[str], None] = lambda reason: None
    ) -> None:
        self.limits = limits
        self.lingering = 0
        self._on_refused = on_refused
        self._unlogged = 0
        self._logged = float("-inf")

    def refused(self, reason: str) -> None:
        """Count a refusal; a crowd of them is one line in the log."""
        self._on_refused(reason)
        self._unlogged += 1
        if time.monotonic() - self._logged >= _LOG_EVERY:
            _LOG.warning("connections refused", extra={"count": self._unlogged, "last": reason})
            self._logged, self._unlogged = time.monotonic(), 0

    def protocol(self) -> type[asyncio.Protocol]:
        """The class for uvicorn's `http`."""
        return type("Guarded", (GuardedProtocol,), {"guard": self})


class GuardedProtocol(ReceivingProtocol):
    """One connection."""

    guard: ClassVar[Guard]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.url = b""
        self._head_bytes = 0  # of the request at hand, trailers included
        self._loose_bytes = 0  # since the last head or piece of a body
        self._begun = self._head_done = False  # of the request that arrives
        self._keep_alive = True
        self._timers: dict[str, asyncio.TimerHandle] = {}

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        wire = cast(asyncio.Transport, transport)
        self._wire = wire
        super().connection_made(cast(asyncio.Transport, _Closing(wire, self._close)))
        if len(self.connections) > self.guard.limits.connections:
            self._begun = True  # its request is on the way
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
        if self.transport.is_closing() or self._deaf:
            if self._loose_bytes > _LINGER_BYTES:
                self._wire.abort()
            return
        super().data_received(data)
        most = self.guard.limits.head_bytes
        if self._loose_bytes > most or self._head_bytes > most:
            self._refuse(_head_too_large(most))
        elif not self._head_done and not self._answering and self.timeout_keep_alive_task is None:
            self._expect_head()

    def on_message_begin(self) -> None:
        self._begun, self._head_done, self._head_bytes = True, False, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._head_bytes += len(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if not self._head_done:  # trailers are dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._stop("head")
        if self._head_bytes > self.guard.limits.head_bytes:
            self._refuse(_head_too_large(self.guard.limits.head_bytes))
        if self.transport.is_closing():
            return
        self._head_done, self._loose_bytes = True, 0
        super().on_headers_complete()
        self._keep_alive = self.cycle.keep_alive
        self.cycle.keep_alive = False  # an answer before the end of the body ends the connection
        if len(self.pipeline) > _AHEAD:
            self.guard.refused("requests_ahead")
            self._wire.abort()

    def on_body(self, body: bytes) -> None:
        self._loose_bytes = 0
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._begun = self._head_done = False
        if not self.transport.is_closing():
            self.cycle.keep_alive = self._keep_alive
            super().on_message_complete()

    def shutdown(self) -> None:
        self._keep_alive = False
        super().shutdown()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_answer()

    def send_400_response(self, msg: str) -> None:
        self._refuse(MalformedRequest(msg))

    def _unsupported_upgrade_warning(self) -> None:
        """Other protocols are not spoken: the request is answered as it stands."""

    @property
    def _answering(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_head(self) -> None:
        if "head" not in self._timers:
            seconds = self.guard.limits.head_seconds
            self._timers["head"] = self.loop.call_later(seconds, self._head_late)

    def _head_late(self) -> None:
        self._stop("head")
        if not self._begun:
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
                self._deaf, self.cycle.keep_alive = True, False
                return
            if self.pipeline or self.cycle.response_started:
                self._wire.abort()  # it would be read as the answer to another request
                return
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.write(_answer(error, self.url))
        self.transport.close()

    def _close(self) -> None:
        """Close; while a request still arrives, only after the client could read the answer.

        Closing a socket with unread bytes resets it, and the answer may never be seen.
        """
        self._stop("head")
        if self._begun and self.guard.lingering < _LINGERING:
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
        left, limits = self._wire.get_write_buffer_size(), self.guard.limits
        if left == 0:
            self._stop("answer")
        elif before is not None and before - left < limits.least_rate * limits.stall_seconds:
            self.guard.refused("answer_not_read")
            self._wire.abort()
        else:
            self._timers["answer"] = self.loop.call_later(
                limits.stall_seconds, self._check_answer, left
            )

    def _stop(self, name: str) -> None:
        timer = self._timers.pop(name, None)
        if timer is not None:
            timer.cancel()


class _Closing:
    """A transport whose `close` is somebody else's; nothing is written after it."""

    def __init__(self, wire: asyncio.Transport, on_close: Callable[[], None]) -> None:
        self._wire = wire
        self._on_close = on_close
        self._closed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wire, name)

    def write(self, data: bytes) -> None:
        if not self._closed:
            self._wire.write(data)

    def is_closing(self) -> bool:
        return self._closed or self._wire.is_closing()

    def close(self) -> None:
        if not self.is_closing():
            self._closed = True
            self._on_close()


def _head_too_large(most: int) -> HeadTooLarge:
    return HeadTooLarge(f"the request's address and headers are over the limit of {most} bytes")


def _answer(error: ServiceError, url: bytes) -> bytes:
    request_id = uuid.uuid4().hex
    body: dict[str, object] = error.body(request_id)
    if url == b"/v2" or url.startswith(b"/v2/"):
        body = {"error": error.message}
    content = json.dumps(body).encode()
    head = [
        f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}",
        "content-type: application/json",
        f"content-length: {len(content)}",
        f"x-request-id: {request_id}",
        "connection: close",
    ]
    if error.retry_after is not None:
        head.append(f"retry-after: {error.retry_after}")
    return "\r\n".join([*head, "", ""]).encode() + content
