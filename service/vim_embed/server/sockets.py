"""Where the service listens, and how uvicorn is set up, in whichever process it runs."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import stat
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from vim_embed.server.connection import connection_class
from vim_embed.server.connection_limits import ConnectionLimits, Guard
from vim_embed.server.tls import load_certificate, tls_options
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_BACKLOG = 2048


class _Config(uvicorn.Config):
    """Bounds the time of a TLS handshake, for which uvicorn has no setting: a connection counts
    as one only after it.
    """

    def __init__(self, *args: Any, handshake_seconds: float, **options: Any) -> None:
        super().__init__(*args, **options)
        self._handshake_seconds = handshake_seconds

    def get_loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        factory = super().get_loop_factory()
        if factory is None or not self.is_ssl:
            return factory

        def bounded() -> asyncio.AbstractEventLoop:
            loop = factory()
            loop.create_server = partial(  # type: ignore[method-assign]
                loop.create_server, ssl_handshake_timeout=self._handshake_seconds
            )
            return loop

        return bounded


def uvicorn_config(
    app: ASGIApp,
    settings: Settings,
    *,
    lifespan: Literal["auto", "off"] = "auto",
    on_refused: Callable[[str], None] = lambda reason: None,
) -> uvicorn.Config:
    """uvicorn without logs of its own, for sockets that are there already.

    on_refused: called with the reason for each connection that is refused or broken off.
    Raises ValueError if the certificate cannot be used.
    """
    return _Config(
        app,
        handshake_seconds=settings.header_timeout,
        http=connection_class(Guard(ConnectionLimits.of(settings), on_refused)),
        ws="none",
        timeout_keep_alive=settings.keep_alive_timeout,
        **tls_options(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan=lifespan,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
    )


def reload_certificate(config: uvicorn.Config, settings: Settings) -> None:
    """Use the files of the certificate as they are now; a broken one leaves the old in force."""
    if config.ssl is None:
        return
    try:
        load_certificate(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), settings)
        load_certificate(config.ssl, settings)
        _LOG.info("certificate read again")
    except ValueError as error:
        _LOG.error("the old certificate stays in force", extra={"reason": str(error)})


def tcp_sockets(settings: Settings, count: int) -> list[socket.socket]:
    """`count` sockets that share the address of the settings: the system spreads connections.

    Raises ValueError that names the fix.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    host, port, sockets = settings.host.strip("[]"), settings.port, []
    try:
        for _ in range(count):
            each = socket.create_server(
                (host, port), family=family, backlog=_BACKLOG, reuse_port=count > 1
            )
            # connections inherit it; else a small answer waits 40 ms for the client's system
            each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            port = each.getsockname()[1]
            sockets.append(each)
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(
            f"cannot listen on {settings.host}:{settings.port} ({reason}): choose another --port "
            "or --host, or stop what listens there"
        ) from error
    scheme = "https" if settings.tls_cert else "http"
    _LOG.info("listening", extra={"url": f"{scheme}://{settings.host}:{port}"})
    return sockets


def unix_socket(path: Path) -> socket.socket:
    """A listening socket for this user and group; one that nobody listens on is replaced.

    Raises ValueError that names the fix.
    """
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ValueError(f"{path} is there and no socket: choose another --unix-socket")
        if _answers(path):
            raise ValueError(f"another process listens on {path}: choose another --unix-socket")
        path.unlink()
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.bind(str(path))
        os.chmod(path, 0o660)
    except OSError as error:
        listening.close()
        raise ValueError(f"cannot listen on {path}: {error.strerror or error}") from error
    listening.listen(_BACKLOG)
    return listening


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
