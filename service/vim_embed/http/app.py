"""The FastAPI application: routes, one error shape, request ids, access log.

`create_app(settings)` builds the torch engine of the settings; tests pass their own engine.
"""

from __future__ import annotations

import logging
import re
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vim_embed import __version__
from vim_embed.engines.fault_injection import Faults
from vim_embed.engines.interface import Engine
from vim_embed.errors import (
    InternalError,
    InvalidInput,
    MalformedRequest,
    MethodNotAllowed,
    NotFound,
    ServiceError,
    Unauthorized,
)
from vim_embed.http.auth import Keys, bearer, listed
from vim_embed.http.body.reading import RELEASES
from vim_embed.http.routes import control, embed, page, v2, v2_state
from vim_embed.http.routes import models as state
from vim_embed.observability.activity import without_secrets
from vim_embed.observability.tracing import NoTraces, RequestSpan
from vim_embed.serving.service import Service
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_STATE = "Models, health and metrics"  # the tag of these routes
_ANONYMOUS = "anonymous"  # in a request's state: it came without a key where one is wanted
_V2 = "/v2"
_HEALTH = ("/health/live", "/health/ready")
_V2_HEALTH = tuple(_V2 + path for path in _HEALTH)
_OPEN = (*_HEALTH, *_V2_HEALTH, *page.PAGE_PATHS)  # need no key
_QUIET = (*_OPEN, "/metrics", "/status")
_EMBEDDING = (
    "/embed",
    f"{v2_state.MODEL}/infer",
    f"{v2_state.VERSIONED}/infer",
)  # shown by `/status`
_BY_STATUS: dict[int, type[ServiceError]] = {
    400: MalformedRequest,
    404: NotFound,
    405: MethodNotAllowed,
}


def create_app(
    settings: Settings,
    engine: Engine | Sequence[Engine] | None = None,
    *,
    on_loaded: Callable[[bool], None] | None = None,
    on_lost: Callable[[], None] = lambda: None,
    service: Service | None = None,
) -> FastAPI:
    """The application. Its lifespan loads the models in the background and drains at the end.

    engine: one, or one for each device; else those of the settings. on_loaded: called from the
    loading thread with whether any model became ready. on_lost: when no worker is left.
    service: a ready-made one, in place of all these.
    """
    faults = Faults() if settings.fault_injection else None
    if service is None:
        service = Service(settings, engine or build_engines(settings, faults), on_lost=on_lost)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start(on_loaded)
        yield
        await anyio.to_thread.run_sync(service.stop)
        await anyio.to_thread.run_sync(service.traces.stop)

    app = FastAPIOffline(
        title="vim-embed",
        version=__version__,
        description="Native Vision Mamba and ViT proxies: images in, embeddings out.",
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(embed.router, tags=["Embedding"])
    app.include_router(control.router(settings, faults), tags=[_STATE])
    app.include_router(state.router, tags=[_STATE])
    app.include_router(v2.router)
    app.include_router(v2_state.router)
    app.include_router(page.router, tags=["Status page"])
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _invalid_parameters)
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_middleware(EmbedDirectly)
    keys = app.state.keys = accepted_keys(settings)
    if keys:
        app.add_middleware(RequireKey, keys=keys)
    app.add_middleware(RequestContext, service=service, keys=keys)
    return app


def build_engines(settings: Settings, faults: Faults | None = None) -> list[Engine]:
    """A torch engine for each device of the settings. Raises ValueError that names the fix."""
    import torch

    from vim_embed.engines.torch_engine import EngineOptions, TorchEngine
    from vim_embed.weights.catalogue import parse_model
    from vim_embed.weights.load import resolve_devices, resolve_dtype

    if settings.threads:
        torch.set_num_threads(settings.threads)
    entries = [parse_model(argument) for argument in settings.models]
    names = [entry.name for entry in entries]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"model {', '.join(twice)} is given twice: give each its own name")
    devices = resolve_devices(settings.device)
    options = EngineOptions(
        device=devices[0],
        dtype=resolve_dtype(settings.dtype),
        backend=settings.backend,
        random_weights=settings.random_weights,
        batch_rows=settings.batch_rows,
        exact_rows=settings.exact_rows,
        on_forward=faults.strike if faults is not None else None,
    )
    return [TorchEngine(entries, replace(options, device=device)) for device in devices]


def accepted_keys(settings: Settings) -> Keys:
    """The API keys of the settings, admins' included. Raises ValueError that names the fix."""
    file = Path(settings.api_keys_file) if settings.api_keys_file else None
    given = [*listed(settings.api_keys), *listed(settings.admin_keys)]
    return Keys(given, file)


class EmbedDirectly:
    """Answers `POST /embed` past FastAPI's routing, a tenth of the Python of a small request.

    The route is FastAPI's all the same, for its document and for every other method.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._route = next(each for each in embed.router.routes if isinstance(each, Route))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        wanted = (scope["type"], scope.get("path"), scope.get("method"))
        if wanted != ("http", self._route.path, "POST"):
            await self.app(scope, receive, send)
            return
        scope["route"] = self._route
        request = Request(scope, receive, send)
        try:
            response: Response = await embed.embed(request)
        except ServiceError as error:
            response = await _service_error(request, error)
        except RequestValidationError as error:
            response = await _invalid_parameters(request, error)
        await response(scope, receive, send)


class RequireKey:
    """Lets only requests with an accepted bearer key through, the health checks and the page."""

    def __init__(self, app: ASGIApp, keys: Keys) -> None:
        self.app = app
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._allowed(scope):
            await self.app(scope, receive, send)
            return
        if scope["path"] in _OPEN:
            scope["state"][_ANONYMOUS] = True
            await self.app(scope, receive, send)
            return
        error = Unauthorized(
            "this service wants an API key: set VIM_EMBED_API_KEY for vim-embed, or send "
            "Authorization: Bearer KEY"
        )
        response = _response(error, scope)
        response.headers["WWW-Authenticate"] = "Bearer"
        response.headers["Connection"] = "close"  # the body is not read
        await response(scope, receive, send)

    def _allowed(self, scope: Scope) -> bool:
        return self.keys.allow(bearer(Headers(scope=scope).get("authorization", "")))


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
        request_id = _request_id(scope)
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

        traces = NoTraces() if scope["path"] in _QUIET else self.service.traces
        with traces.request(scope, request_id) as span:
            try:
                await self.app(scope, receive, send_with_id)
            except Exception:
                _LOG.exception("unexpected fault")
                if status == 0:
                    error = InternalError(
                        "the service failed on this request: retry, then report it"
                    )
                    await _response(error, scope)(scope, receive, send_with_id)
            self._record(scope, span, status, time.monotonic() - begin)

    def _record(self, scope: Scope, span: RequestSpan, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "other")
        code = scope["state"].get("error_code", "")
        self.service.metrics.answered(route, status, code, seconds)
        span.answered(route, status, code)
        if code and scope["path"] not in (*_HEALTH, *_V2_HEALTH):
            self._remember(scope, status, code)
        elif route in _EMBEDDING and status == 200:
            self.service.metrics.activity.answered(seconds)
        level = logging.DEBUG if scope["path"] in _QUIET else logging.INFO
        fields: dict[str, object] = {
            "method": scope["method"],
            "path": without_secrets(scope["path"], self.keys.allow),
            "status": status,
            "ms": round(1000 * seconds, 1),
        }
        if code:
            fields["code"] = code
        if code == Unauthorized.code and scope.get("client"):
            fields["client"] = scope["client"][0]
        _LOG.log(level, "request", extra=fields)

    def _remember(self, scope: Scope, status: int, code: str) -> None:
        state = scope["state"]
        self.service.metrics.activity.failed(
            code,
            status,
            without_secrets(state["error_message"], self.keys.allow),
            without_secrets(f"{scope['method']} {scope['path']}", self.keys.allow),
            state["request_id"],
        )


def _request_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _PLAIN_ID.fullmatch(value.decode("latin-1")):
            return str(value.decode("latin-1"))
    return uuid.uuid4().hex


def _response(error: ServiceError, scope: Scope) -> JSONResponse:
    state = scope["state"]
    state["error_code"], state["error_message"] = error.code, error.message
    headers = dict(error.headers)
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if error.status >= 500:
        error = _for_outsiders(error, anonymous=_ANONYMOUS in state)
    body = error.body(state["request_id"])
    if f"{scope['path']}/".startswith(f"{_V2}/"):
        body = {"error": error.message}  # as the Open Inference Protocol has it
    return JSONResponse(body, status_code=error.status, headers=headers)


def _for_outsiders(error: ServiceError, *, anonymous: bool) -> ServiceError:
    """A failure without tokens; without reasons where whoever asks showed no key."""
    if anonymous:
        return type(error)(f"{error.code.replace('_', ' ')}: send an API key to read why")
    text = without_secrets(error.message, lambda word: False, length=len(error.message))
    return type(error)(text, detail=error.detail)


async def _service_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    traceback.clear_frames(error.__traceback__)  # they and the future that failed hold each other
    return _response(error, request.scope)


async def _invalid_parameters(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    problems = "; ".join(f"{p['loc'][-1]}: {p['msg']}" for p in error.errors())
    return _response(InvalidInput(f"invalid parameters ({problems})"), request.scope)


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    kind = _BY_STATUS.get(error.status_code, InternalError)
    method, path = request.method, request.url.path
    message = {
        NotFound: f"no route {path}: see /docs",
        MethodNotAllowed: f"{path} does not take {method}: see /docs",
    }.get(kind, str(error.detail))
    return _response(kind(message), request.scope)
