"""An HTTP process of several: reads bodies into shared memory and relays requests.

Everything else (keys, checks, errors, metrics, answers) is the model process's own application,
reached over a Unix socket, so that both modes behave alike. Knows nothing of models or formats.
Started by `http_pool.py` with its settings on standard input, which stays open as long as
the model process lives.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace

import httpx
import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from vim_embed.errors import Draining, ServiceError
from vim_embed.http.auth import accepted_keys, bearer
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.buffer import BodyBuffer
from vim_embed.http.body.reading import Limits, receive_body
from vim_embed.observability.logs import configure_logging
from vim_embed.server.body_header import HEADER, error_header, place_header
from vim_embed.server.sockets import reload_certificate, uvicorn_config
from vim_embed.serving.malloc_trim import Trimming
from vim_embed.settings import Settings

_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect",
    b"transfer-encoding", b"content-length", b"content-encoding", b"x-forwarded-for",
    HEADER.encode(),
}  # fmt: skip
_SMALL_BODY = 1024 * 1024  # bytes of bodies that are no pixels,
_SMALL_ROOM = 64 * 1024 * 1024  # and of what it may take to grow and decompress one


@dataclass(frozen=True)
class Front:
    """What one process was given: its number, arena and listening sockets' descriptors."""

    number: int
    arena_fd: int
    arena_size: int
    listening: list[int]
    upstream: str
    settings: dict[str, object]


class FrontApp:
    """The ASGI application of an HTTP process."""

    def __init__(self, settings: Settings, arena: Arena, number: int, upstream: str) -> None:
        self._limits = Limits.of(settings)
        self._keys = accepted_keys(settings)
        self._arena = arena
        self._number = number
        limits = httpx.Limits(max_connections=None, keepalive_expiry=600)
        transport = httpx.AsyncHTTPTransport(uds=upstream, limits=limits)
        self._upstream = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        room = BodyBuffer(self._arena)
        try:
            handed, body = await self._body(Request(scope, receive), room)
            answer = await self._relayed(scope, receive, handed, body)
            if answer is not None:
                await answer(scope, receive, send)
        except ClientDisconnect:
            return
        finally:
            room.release()

    def reload_keys(self) -> None:
        self._keys.reload()

    async def _body(self, request: Request, room: BodyBuffer) -> tuple[str | None, bytes]:
        """The internal header of a body of pixels, or another body itself."""
        begun = time.monotonic()
        if not self._allowed(request):
            return None, b""  # the model process refuses it, as every request without a key
        try:
            if not _has_pixels(request):
                small = replace(self._limits, body_bytes=_SMALL_BODY)
                own = BodyBuffer(Arena.private(_SMALL_ROOM))  # for these there is always room
                return None, bytes(await receive_body(request, small, own))
            await receive_body(request, self._limits, room)
        except ServiceError as error:
            return error_header(begun, error), b""
        return place_header(begun, self._number, *room.place), b""

    def _allowed(self, request: Request) -> bool:
        key = bearer(request.headers.get("authorization", ""))
        return not self._keys or self._keys.allow(key)

    async def _relayed(
        self, scope: Scope, receive: Receive, handed: str | None, body: bytes
    ) -> Response | None:
        """The model process's answer; None if the client left before it came."""
        asked = asyncio.ensure_future(self._ask(scope, handed, body))
        left = asyncio.ensure_future(_disconnected(receive))
        await asyncio.wait({asked, left}, return_when=asyncio.FIRST_COMPLETED)
        left.cancel()
        if not asked.done():
            asked.cancel()
            with suppress(asyncio.CancelledError):
                await asked
            return None
        try:
            return asked.result()
        except httpx.TransportError:
            error = Draining("the service is stopping: retry against another, or later")
            return JSONResponse(error.body(uuid.uuid4().hex), status_code=error.status)

    async def _ask(self, scope: Scope, handed: str | None, body: bytes) -> Response:
        headers = [(k, v) for k, v in scope["headers"] if k not in _HOP_BY_HOP]
        if scope.get("client"):
            headers.append((b"x-forwarded-for", scope["client"][0].encode()))
        if handed is not None:
            headers.append((HEADER.encode(), handed.encode()))
        query = scope["query_string"]
        path = scope["raw_path"] + (b"?" + query if query else b"")
        url = httpx.URL(scheme="http", host="model", raw_path=path)
        request = httpx.Request(scope["method"], url, headers=headers, content=body or None)
        response = await self._upstream.send(request, stream=True)
        try:
            content = b"".join([chunk async for chunk in response.aiter_raw()])
        finally:
            await response.aclose()
        answer = Response(content, status_code=response.status_code)
        kept = [
            (k.lower(), v) for k, v in response.headers.raw if k.lower() != b"transfer-encoding"
        ]
        answer.raw_headers = kept
        return answer


def _has_pixels(request: Request) -> bool:
    path = request.scope["path"]
    return bool(path == "/embed" or path.endswith("/infer"))


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _tell_parent(reason: str) -> None:
    """Of a refused connection, for the metrics of the model process."""
    with suppress(OSError):  # it is gone, and this process will be soon
        print(reason, flush=True)


def main() -> None:
    """Serve until standard input ends."""
    front = Front(**json.loads(sys.stdin.readline()))
    settings = Settings(**front.settings)  # type: ignore[arg-type]
    configure_logging(settings.log_level, settings.log_format)
    arena = Arena(front.arena_fd, front.arena_size)
    Trimming(lambda: 0.0, arena.trim).start()  # nothing large is elsewhere here
    app = FrontApp(settings, arena, front.number, front.upstream)
    config = uvicorn_config(app, settings, lifespan="off", on_refused=_tell_parent)
    server = uvicorn.Server(config)

    def stop_with_parent() -> None:
        sys.stdin.read()
        server.should_exit = True

    def reload(*_: object) -> None:
        app.reload_keys()
        reload_certificate(server.config, settings)

    config.load()  # now, so that there is a certificate to replace
    signal.signal(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked since it was started
    threading.Thread(target=stop_with_parent, daemon=True).start()
    server.run(sockets=[socket.socket(fileno=fd) for fd in front.listening])


if __name__ == "__main__":
    main()
