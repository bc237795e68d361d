"""The FastAPI application: routes, one error shape, request ids, access log.

`create_app(settings)` builds the torch engine of the settings; tests pass their own engine.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial

import anyio
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Scope

from vim_embed import __version__
from vim_embed.engines import build
from vim_embed.engines.fault_injection import Faults
from vim_embed.engines.interface import Engine
from vim_embed.errors import QueueFull, ServiceError
from vim_embed.http.auth import accepted_keys
from vim_embed.http.body.arena import Arena
from vim_embed.http.body.held_answers import HoldAnswers
from vim_embed.http.client_shares import client_of
from vim_embed.http.error_answers import (
    error_response,
    on_http_exception,
    on_invalid_parameters,
    on_service_error,
)
from vim_embed.http.formats.image_pool import DecoderPool
from vim_embed.http.forwarded import ForwardedAddresses
from vim_embed.http.methods import HeadAndOptions
from vim_embed.http.middleware import RequestContext, RequireKey
from vim_embed.http.routes import control, embed, page, preview, v2, v2_state
from vim_embed.http.routes import models as state
from vim_embed.http.web_pages import OnlyOwnPages, WebPages, listed, origins
from vim_embed.serving.memory_limit import inflight_bytes
from vim_embed.serving.service import Service, build_service
from vim_embed.settings import Settings

_STATE = "Models, health and metrics"  # the tag of these routes


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
        service = build_service(
            settings, engine or build.build_engines(settings, faults), on_lost=on_lost
        )

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
        redirect_slashes=False,  # to the name that the caller gave for this host
    )
    app.state.service = service
    arena = app.state.arena = Arena.private(inflight_bytes(settings), settings.client_share)
    service.trimming.rarely = arena.trim
    decoders = app.state.decoders = DecoderPool()
    service.on_drain = decoders.stop
    embed.add_route(app.router)
    app.include_router(preview.router, tags=["Embedding"])
    app.include_router(control.router(settings, faults), tags=[_STATE])
    app.include_router(state.router, tags=[_STATE])
    app.include_router(v2.router)
    app.include_router(v2_state.router)
    app.include_router(page.router, tags=["Status page"])
    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_invalid_parameters)
    app.add_exception_handler(HTTPException, on_http_exception)
    keys = app.state.keys = accepted_keys(settings)
    # The last that is added is the first that a request meets.
    whose = partial(client_of, keys)
    app.add_middleware(HoldAnswers, arena=arena, refuse=_refuse_answer, client_of=whose)
    app.add_middleware(HeadAndOptions)
    if keys:
        app.add_middleware(RequireKey, keys=keys)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins(settings),
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],
            expose_headers=["*", "Server-Timing", "X-Request-ID", "Retry-After"],
        )
    app.add_middleware(OnlyOwnPages, pages=WebPages(settings, keys))
    if settings.trusted_proxies:
        app.add_middleware(ForwardedAddresses, proxies=listed(settings.trusted_proxies))
    app.add_middleware(RequestContext, service=service, keys=keys)
    return app


def _refuse_answer(error: ServiceError, scope: Scope) -> ASGIApp:
    """What a client gets in place of an answer that there is no room for."""
    if isinstance(error, QueueFull):
        error.retry_after = scope["app"].state.service.queue.retry_after
    return error_response(error, scope)
