"""What every request passes: request id, log line, metrics, API keys."""

from __future__ import annotations

import asyncio
import logging
import time

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vim_embed.errors import (
    Draining,
    InternalError,
    Unauthorized,
)
from vim_embed.http.auth import Keys, bearer
from vim_embed.http.body.reading import RELEASES
from vim_embed.http.error_answers import error_response
from vim_embed.http.paths import ANONYMOUS, EMBEDDING_ROUTES, HEALTH, OPEN, QUIET, V2_HEALTH
from vim_embed.http.request_id import request_id_of
from vim_embed.observability.redaction import without_secrets
from vim_embed.observability.tracing import NoTraces, RequestSpan
from vim_embed.serving.service import Service

_LOG = logging.getLogger(__name__)


# Paths that hold no key, whatever the keys are.
_PLAIN_PATHS = frozenset((*QUIET, *EMBEDDING_ROUTES, "/models", "/v2"))


def _shown(path: str, keys: Keys) -> str:
    """A path for the log, the status page and traces."""
    return path if path in _PLAIN_PATHS else without_secrets(path, keys)


class RequireKey:
    """Lets only requests with an accepted bearer key through, the health checks and the page."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allowed(scope):
            await self.app(scope, receive, send)
            return
        if scope["path"] in OPEN:
            scope["state"][ANONYMOUS] = True
            await self.app(scope, receive, send)
            return
        error = Unauthorized(
            "this service wants an API key: set VIM_EMBED_API_KEY for vim-embed, or send "
            "Authorization: Bearer KEY"
        )
        response = error_response(error, scope)
        response.headers["WWW-Authenticate"] = "Bearer"
        response.headers["Connection"] = "close"  # the body is not read
        await response(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        return self.keys.allow(bearer(Headers(scope=scope).getlist("authorization")))


class RequestContext:
    """Request id in and out, access log, request metrics, and the last resort for faults."""

    def __init__(self, app: ASGIApp, service: Service, keys: Keys) -> None:
        self.app = app
        self.service = service
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        try:
            await self._answer(scope, receive, send)
        finally:
            for release in scope["state"].get(RELEASES, ()):
                release()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = request_id_of(scope, self.keys)
        scope.setdefault("state", {})["request_id"] = request_id
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        begin, status = time.monotonic(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-ID"] = request_id
                if self.service.draining:
                    headers["Connection"] = "close"
            await send(message)

        traces = NoTraces() if scope["path"] in QUIET else self.service.traces
        path = _shown(scope["path"], self.keys)
        with traces.request(scope, request_id, path) as span:
            try:
                await self.app(scope, receive, send_with_id)
            except asyncio.CancelledError:  # the end of the service: see `Server.drain`
                if not self.service.draining:
                    raise
                if status:
                    return  # in the midst of its answer, which the server breaks off
                error = Draining("the service is stopping: retry against another, or later")
                await error_response(error, scope)(scope, receive, send_with_id)
            except Exception:
                _LOG.exception("unexpected fault")
                if status == 0:
                    fault = InternalError(
                        "the service failed on this request: retry, then report it"
                    )
                    await error_response(fault, scope)(scope, receive, send_with_id)
            self._record(scope, path, span, status, time.monotonic() - begin)

    def _record(
        self, scope: Scope, path: str, span: RequestSpan, status: int, seconds: float
    ) -> None:
        route = getattr(scope.get("route"), "path", "other")
        code = scope["state"].get("error_code", "")
        reason = scope["state"].get("error_reason", "")
        self.service.metrics.answered(route, status, code, seconds, reason)
        span.answered(route, status, code)
        if code and scope["path"] not in (*HEALTH, *V2_HEALTH):
            self._remember(scope, path, status, code)
        elif route in EMBEDDING_ROUTES and status == 200:
            self.service.metrics.activity.answered(seconds)
        level = logging.DEBUG if scope["path"] in QUIET else logging.INFO
        fields: dict[str, object] = {
            "method": scope["method"],
            "path": path,
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        if code:
            fields["code"] = code
        if code == Unauthorized.code and scope.get("client"):
            fields["client"] = scope["client"][0]
        _LOG.log(level, "request", extra=fields)

    def _remember(self, scope: Scope, path: str, status: int, code: str) -> None:
        state = scope["state"]
        self.service.metrics.activity.failed(
            code,
            status,
            without_secrets(state["error_message"], self.keys),
            f"{scope['method']} {path}",
            state["request_id"],
        )
