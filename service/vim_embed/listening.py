"""Where the service listens, and how uvicorn is set up, in whichever process it runs."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from vim_embed.settings import Settings

_BACKLOG = 2048


def uvicorn_config(
    app: ASGIApp, settings: Settings, *, lifespan: Literal["auto", "off"] = "auto"
) -> uvicorn.Config:
    """uvicorn without logs of its own; the sockets come from `listening_sockets`."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        lifespan=lifespan,
        timeout_graceful_shutdown=int(settings.drain_timeout) + 5,
    )


def listening_sockets(settings: Settings, config: uvicorn.Config) -> list[socket.socket]:
    """The TCP socket, bound, and the Unix socket of the settings if there is one.

    Raises SystemExit (from uvicorn, which has logged why) for an address that is not to be had,
    ValueError for a Unix socket's path.
    """
    sockets = [config.bind_socket()]
    if settings.unix_socket:
        sockets.append(unix_socket(Path(settings.unix_socket)))
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
        raise ValueError(f"cannot listen on {path}: {error.strerror or error}") from error
    listening.listen(_BACKLOG)
    return listening


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(str(path)) == 0
