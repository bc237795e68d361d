"""uvicorn's HTTP protocol with what it lacks: our error shape, a bound for heads, an end for bodies
that nobody reads.

Knows nothing of routes: a request that cannot be parsed never reaches the application.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from typing import Any

from vim_embed.errors import MalformedRequest
from vim_embed.receiving import ReceivingProtocol

MAX_HEAD = 64 * 1024  # bytes of request line and headers, give or take one read
LINGER = 2.0  # seconds in which a client may finish a body that was answered early


class GuardedProtocol(ReceivingProtocol):
    """One connection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = False
        self._head_bytes = 0
        self._lingering: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._in_head:
            return
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD and not self.transport.is_closing():
            self.send_400_response(f"the head of the request is over {MAX_HEAD} bytes")

    def on_message_begin(self) -> None:
        self._in_head, self._head_bytes = True, 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # trailers are dropped
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def on_response_complete(self) -> None:
        """Let a client whose body was refused read why, but not send for ever.

        Closing at once could destroy the answer on its way, as unread data reset a connection.
        """
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body:
            self._lingering = self.loop.call_later(LINGER, self.transport.close)

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP request as every other bad request, and close the connection."""
        request_id = uuid.uuid4().hex
        body = json.dumps(MalformedRequest(msg).body(request_id)).encode()
        head = (
            "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nX-Request-ID: {request_id}\r\n"
            "Connection: close\r\n\r\n"
        )
        self.transport.write(head.encode() + body)
        self.transport.close()
