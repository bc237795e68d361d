"""Where the service listens, and how uvicorn is set up, in whichever process it runs."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import socket
import ssl
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
# Connections that the system keeps until they are accepted.
_BACKLOG = 2048
# Seconds that other services which start may take before this one goes on.
_OTHERS_START = 5.0
# Seconds that uvicorn waits for connections at its end: requests were waited for before.
_CLOSING = 2
# The addresses of the other family under which the same clients would look for the service.
_COUNTERPARTS = {
    "127.0.0.1": "::1",
    "localhost": "::1",
    "::1": "127.0.0.1",
    "0.0.0.0": "::",
    "::": "0.0.0.0",
}


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
        timeout_graceful_shutdown=_CLOSING,
        proxy_headers=False,  # http/forwarded.py reads them, of proxies that a setting names
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

    The address is this service's alone. Sockets that share one (SO_REUSEPORT) would share it with
    any other process of this user too, so an ordinary socket asks first whether it is free, and
    services that start at once ask one after the other. Where the address is a loopback or a
    wildcard one, its counterpart of the other family has to be free too: clients that ask for
    `localhost` would reach one or the other. Raises ValueError that names the fix.
    """
    host, port, sockets = settings.host.strip("[]"), settings.port, []
    try:
        with _one_start_at_a_time():
            if port:
                _bound(host, port, share=False).close()
                _ask_for_counterpart(host, port)
            for _ in range(count):
                each_socket = _bound(host, port, share=count > 1)
                sockets.append(each_socket)
                port = each_socket.getsockname()[1]
                each_socket.listen(_BACKLOG)
    except OSError as error:
        for opened in sockets:
            opened.close()
        reason = error.strerror or error
        raise ValueError(
            f"cannot listen on {settings.host}:{settings.port} ({reason}): choose another --port "
            "or --host, or stop what listens there"
        ) from error
    scheme = "https" if settings.tls_cert else "http"
    _LOG.info("listening", extra={"url": f"{scheme}://{settings.host}:{port}"})
    return sockets


def _bound(host: str, port: int, *, share: bool) -> socket.socket:
    """A socket with an address, which does not listen yet."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # after a restart
        if share:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Connections inherit it; else a small answer waits 40 ms for the client's system.
        bound.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound


def _ask_for_counterpart(host: str, port: int) -> None:
    """Raise OSError if somebody listens there; a system without that family is fine."""
    counterpart = _COUNTERPARTS.get(host)
    if counterpart is None:
        return
    try:
        _bound(counterpart, port, share=False).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise OSError(error.errno, f"{error.strerror} at {counterpart}") from error


@contextmanager
def _one_start_at_a_time() -> Iterator[None]:
    """Hold the one name that services of this machine take while they look for free ports.

    The name lies in the network's own namespace (Linux), as the ports do, and nothing of it is left
    behind by a process that is killed. Elsewhere, and after some seconds, it goes without.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as lock:
        if sys.platform == "linux":
            end = time.monotonic() + _OTHERS_START
            while time.monotonic() < end:
                with suppress(OSError):
                    lock.bind("\0vim-embed-server-start")
                    break
                time.sleep(0.01)
        yield


class UnixSocket:
    """A listening socket at a path, for this user and group; one nobody listens on is replaced."""

    def __init__(self, path: Path) -> None:
        """Raises ValueError that names the fix."""
        self.path = path
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with _folder_locked(path.parent):
                _clear(path)
                self.socket.bind(str(path))
                os.chmod(path, 0o660)
                self._identity = _identity(path)
                self.socket.listen(_BACKLOG)
        except OSError as error:
            self.socket.close()
            raise ValueError(f"cannot listen on {path}: {error.strerror or error}") from error
        except ValueError:
            self.socket.close()
            raise

    def remove(self) -> None:
        """Take the path away, unless it is another's by now."""
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                self.path.unlink()


def _clear(path: Path) -> None:
    """Remove a socket that was left behind. Raises ValueError if the path is somebody's."""
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise ValueError(f"{path} is there and no socket: choose another --unix-socket")
        if _answers(path):
            raise ValueError(f"another process listens on {path}: choose another --unix-socket")
        path.unlink()


@contextmanager
def _folder_locked(folder: Path) -> Iterator[None]:
    """Let one service at a time look at a folder's sockets and put its own there."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # file systems without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _identity(path: Path) -> tuple[int, int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino, found.st_mtime_ns  # numbers of files are used again


def _answers(path: Path) -> bool:
    """Whether somebody listens there, even one that is stopped or has no room for another."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) in (0, errno.EAGAIN)
