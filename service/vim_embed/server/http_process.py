"""An HTTP process of several: reads bodies into shared memory and relays requests.

Everything else (keys, checks, errors, metrics, answers) is the model process's own application,
reached over a Unix socket, so that both modes behave alike. Knows nothing of models or formats, and
imports no application: numpy, torch and the decoders are the model process's alone.
Started by `http_pool.py` with its settings on standard input, which stays open as long as the model
process lives.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import httpx
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from vim_embed.errors import (
    DeadlineExceeded,
    Draining,
    MalformedRequest,
    QueueFull,
    ServiceError,
)
from vim_embed.http.auth import accepted_keys, bearer
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.buffer import BodyBuffer
from vim_embed.http.body.held_answers import HoldAnswers
from vim_embed.http.body.reading import HOLDER, RELEASES, Limits, receive_body
from vim_embed.http.client_shares import client_of
from vim_embed.http.error_shape import error_body, error_headers
from vim_embed.http.forwarded import ForwardedAddresses
from vim_embed.http.request_id import request_id_of
from vim_embed.http.web_pages import WebPages, listed
from vim_embed.observability.logs import configure_logging
from vim_embed.server.body_header import HEADER, Handoff, failure
from vim_embed.server.sockets import reload_certificate, uvicorn_config
from vim_embed.server.uvicorn_server import UvicornServer
from vim_embed.serving.process_tuning import Trimming, share_one_arena
from vim_embed.settings import Settings

# Headers of one connection, and those whose meaning the relayed body no longer has.
_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"upgrade", b"expect",
    b"transfer-encoding", b"content-length", b"content-encoding", HEADER.encode(),
}  # fmt: skip
# Bytes of a body that is no pixels, and of what it may take to grow and decompress one.
_SMALL_BODY = 1024 * 1024
_SMALL_ROOM = 64 * 1024 * 1024
# Seconds between two signs of life for the model process.
_BEAT = 2.0
# Seconds that the model process may take beyond the request timeout, before it counts as stopped.
_MODEL_PROCESS = 10.0
# Seconds that requests get once the model process ends; they cannot be answered any more.
_LAST_REQUESTS = 1.0
# Seconds after which a client may ask again, when the model process is gone, or memory is short.
_RETRY_AFTER = 2


@dataclass(frozen=True)
class Assignment:
    """What one process was given: its number, arena and listening sockets' descriptors."""

    number: int
    arena_fd: int
    arena_size: int
    listening: list[int]
    upstream: str
    settings: dict[str, object]


class Relay:
    """The ASGI application of an HTTP process."""

    def __init__(self, settings: Settings, arena: Arena, number: int, upstream: str) -> None:
        self._limits = Limits.of(settings)
        self._keys = accepted_keys(settings)
        self._client_of = partial(client_of, self._keys)
        self._pages = WebPages(settings, self._keys)
        self._arena = arena
        self._number = number
        self._answer_seconds = settings.request_timeout + _MODEL_PROCESS
        limits = httpx.Limits(max_connections=None, keepalive_expiry=600)
        # No TLS on the way: an empty context saves the 8 MB of everybody's certificates.
        no_tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        transport = httpx.AsyncHTTPTransport(uds=upstream, limits=limits, verify=no_tls)
        self._upstream = httpx.AsyncClient(transport=transport, timeout=None, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        started = False
        scope["state"] = {}

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        async def application(scope: Scope, receive: Receive, send: Send) -> None:
            buffer = BodyBuffer(self._arena, scope["state"][HOLDER])
            scope["state"][RELEASES] = [buffer.release]
            answer = await self._answer(scope, receive, buffer)
            if answer is not None:
                await answer(scope, receive, send)

        try:
            held = HoldAnswers(application, self._arena, self._refused, self._client_of)
            await held(scope, receive, send_noted)
        except ClientDisconnect:
            return
        except asyncio.CancelledError:  # this process ends: see `UvicornServer.end_requests`
            if not started:
                await self._stopping(scope)(scope, receive, send)
        finally:
            for release in scope["state"].get(RELEASES, ()):
                release()

    def reload_keys(self) -> None:
        self._keys.reload()

    async def _answer(self, scope: Scope, receive: Receive, buffer: BodyBuffer) -> Response | None:
        """The model process's answer; None if the client left before it came."""
        handoff = Handoff(time.monotonic(), scope.get("client"), scope.get("server"))
        request, body, seconds, read = Request(scope, receive), b"", None, False
        refusal = self._pages.refusal(scope)
        if isinstance(refusal, MalformedRequest):  # without one Host, it could not be relayed
            return self._own(scope, refusal)
        handoff = replace(handoff, admitted=refusal is None)
        if refusal is None and self._has_key(request):  # else the model process refuses it, unread
            try:
                if _has_pixels(request):
                    await receive_body(request, self._limits, buffer)
                    handoff = replace(handoff, body=(self._number, *buffer.place))
                    seconds = self._answer_seconds
                elif _has_body(request):
                    small = replace(self._limits, body_bytes=_SMALL_BODY)
                    own = BodyBuffer(Arena.private(_SMALL_ROOM))  # there is always room for these
                    body = bytes(await receive_body(request, small, own))
                read = True
            except ServiceError as error:
                handoff = replace(handoff, failed=failure(error))
        # Who asks for more of a body that is refused tells its client to send it: RFC 9110, 10.1.1.
        left = _disconnected(receive) if read else asyncio.Event().wait()
        return await self._relayed(scope, left, handoff, body, seconds)

    def _has_key(self, request: Request) -> bool:
        key = bearer(request.headers.getlist("authorization"))
        return not self._keys or self._keys.allow(key)

    async def _relayed(
        self,
        scope: Scope,
        leaving: Coroutine[Any, Any, object],
        handoff: Handoff,
        body: bytes,
        seconds: float | None,
    ) -> Response | None:
        """leaving: ends when the client leaves."""
        asked = asyncio.ensure_future(self._ask(scope, handoff, body))
        left = asyncio.ensure_future(leaving)
        try:
            await asyncio.wait({asked, left}, timeout=seconds, return_when="FIRST_COMPLETED")
        finally:
            for each in (asked, left):
                if not each.done():
                    each.cancel()
        if asked.done():
            try:
                return asked.result()
            except httpx.TransportError:
                return self._stopping(scope)
            except httpx.InvalidURL:
                return self._own(scope, MalformedRequest("the request's address is none"))
        with suppress(asyncio.CancelledError):
            await asked
        if left.done() and not left.cancelled():
            return None
        return self._own(scope, DeadlineExceeded("the model process does not answer"))

    async def _ask(self, scope: Scope, handoff: Handoff, body: bytes) -> Response:
        headers = [(k, v) for k, v in scope["headers"] if k not in _HOP_BY_HOP]
        headers.append((HEADER.encode(), handoff.encode().encode()))
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
        answer.raw_headers = [
            (k.lower(), v) for k, v in response.headers.raw if k.lower() != b"transfer-encoding"
        ]
        return answer

    def _stopping(self, scope: Scope) -> Response:
        text = "the service is stopping: retry against another, or later"
        return self._own(scope, Draining(text, retry_after=_RETRY_AFTER))

    def _refused(self, error: ServiceError, scope: Scope) -> Response:
        """For an answer that there is no room for."""
        if isinstance(error, QueueFull):
            error.retry_after = _RETRY_AFTER
        return self._own(scope, error)

    def _own(self, scope: Scope, error: ServiceError) -> Response:
        """An error that the model process cannot give, in the shape that it would have there."""
        request_id = request_id_of(scope, self._keys)
        return Response(
            json.dumps(error_body(error, scope["path"], request_id)),
            status_code=error.status,
            headers={**error_headers(error), "X-Request-ID": request_id, "Connection": "close"},
            media_type="application/json",
        )


def _has_pixels(request: Request) -> bool:
    path = request.scope["path"]
    return bool(path == "/embed" or path.endswith("/infer"))


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _tell_parent(line: str) -> None:
    """A refused connection's reason, for the metrics of the model process; or a sign of life.

    Never waits: what the model process does not read, because it is stopped or gone, is dropped.
    """
    with suppress(OSError):
        os.write(sys.stdout.fileno(), f"{line}\n".encode())


def _report(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log what went wrong in the event loop, but for what is none.

    anyio's sockets set the result of a future, which may be cancelled in the same moment because
    the client left.
    """
    if not isinstance(context.get("exception"), asyncio.InvalidStateError):
        loop.default_exception_handler(context)


async def _serve(server: UvicornServer, listening: list[socket.socket]) -> None:
    """Serve until standard input ends, and show meanwhile that the event loop turns."""
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report)
    parent_gone = asyncio.Event()

    def watch_parent() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(parent_gone.set)

    async def beat() -> None:
        while True:
            _tell_parent("")
            await asyncio.sleep(_BEAT)

    async def end() -> None:
        await parent_gone.wait()
        await server.end_requests(_LAST_REQUESTS)
        server.should_exit = True

    threading.Thread(target=watch_parent, daemon=True).start()
    tasks = [asyncio.create_task(beat()), asyncio.create_task(end())]
    await server.serve(sockets=listening)
    for task in tasks:
        task.cancel()


def main() -> None:
    """Serve until standard input ends."""
    given = Assignment(**json.loads(sys.stdin.readline()))
    settings = Settings(**given.settings)  # type: ignore[arg-type]
    configure_logging(settings.log_level, settings.log_format)
    os.set_blocking(sys.stdout.fileno(), False)
    share_one_arena()
    # httpcore imports trio wherever it is installed, 4 MB that nobody here uses.
    sys.modules.setdefault("trio", None)  # type: ignore[arg-type]
    arena = Arena(given.arena_fd, given.arena_size, settings.client_share)
    Trimming(lambda: 0.0, arena.trim).start()  # nothing large is elsewhere here
    relay = Relay(settings, arena, given.number, given.upstream)
    application = ForwardedAddresses(relay, listed(settings.trusted_proxies))
    config = uvicorn_config(application, settings, lifespan="off", on_refused=_tell_parent)
    server = UvicornServer(config, lambda: None)

    def reload(*_: object) -> None:
        relay.reload_keys()
        reload_certificate(server.config, settings)

    config.load()  # now, so that there is a certificate to replace
    signal.signal(signal.SIGHUP, reload)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})  # blocked since it was started
    listening = [socket.socket(fileno=fd) for fd in given.listening]
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_serve(server, listening))


if __name__ == "__main__":
    main()
