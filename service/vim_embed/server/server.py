"""Runs the service: its processes and sockets, from the settings to the exit code.

The first SIGTERM or SIGINT makes the service refuse new work (503) while what is in flight
finishes; then the process ends with code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from vim_embed.http.app import create_app
from vim_embed.http.auth import accepted_keys, require_keys
from vim_embed.server.body_header import BodyHandoff
from vim_embed.server.connection_limits import ConnectionLimits, allow_open_files
from vim_embed.server.http_pool import HttpPool
from vim_embed.server.sockets import UnixSocket, reload_certificate, tcp_sockets, uvicorn_config
from vim_embed.server.uvicorn_server import UvicornServer
from vim_embed.serving.memory_limit import log_memory
from vim_embed.serving.process_tuning import tune_memory
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
FAILED = 1
# Seconds that HTTP processes get for their last answers.
_HTTP_PROCESSES_END = 10.0
# Seconds that threads get to end, once nobody waits for what they do.
_THREADS_END = 1.0
# Seconds that the model process keeps an idle connection of an HTTP process.
_INTERNAL_KEEP_ALIVE = 3600


class Server:
    """One service: the application, its sockets, and HTTP processes where the settings want some.

    Starting binds everything, `run` serves until a signal, `drain` ends it.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ValueError if the settings contradict each other, open the service to everybody,
        or name an address that is taken.
        """
        require_keys(accepted_keys(settings), *reachable_as(settings))
        allow_open_files(ConnectionLimits.of(settings))
        if settings.http_processes > 1:
            _require_temporary_folder()
        tune_memory(settings.device)
        log_memory(settings)
        self._settings = settings
        self._failed = False
        self._stopping = asyncio.Event()
        self._app = create_app(settings, on_loaded=self._on_loaded, on_lost=self._on_lost)
        self._service = self._app.state.service
        on_refused = self._service.metrics.connection_refused
        self._config = uvicorn_config(self._app, settings, on_refused=on_refused)
        tcp = tcp_sockets(settings, settings.http_processes)
        self._unix = UnixSocket(Path(settings.unix_socket)) if settings.unix_socket else None
        unix = [] if self._unix is None else [self._unix.socket]
        self._sockets = [*tcp, *unix]
        self._pool: HttpPool | None = None
        if settings.http_processes > 1:
            self._pool = HttpPool(settings, [[each, *unix] for each in tcp], on_refused)
            self._config = internal_config(BodyHandoff(self._app, self._pool.arenas))
            self._sockets = [UnixSocket(Path(self._pool.upstream)).socket]
        self._uvicorn = UvicornServer(self._config, self._stop)
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self) -> int:
        """Serve until a signal; the process's exit code: 1 if no model could be loaded."""
        runner = asyncio.Runner(loop_factory=self._config.get_loop_factory())  # uvloop, if there
        threads = ThreadPoolExecutor(thread_name_prefix="vim-embed-pool")
        try:
            runner.get_loop().set_default_executor(threads)
            runner.run(self._serve())
        except SystemExit:  # uvicorn could not start, and has logged why
            self._failed = True
        code = FAILED if self._failed else 0
        if self._unix is not None:
            self._unix.remove()
        threads.shutdown(wait=False, cancel_futures=True)
        if _still_working():
            # Native code cannot be interrupted, and aborts if Python ends under it.
            logging.shutdown()
            os._exit(code)
        runner.close()
        return code

    async def _serve(self) -> None:
        await self.start()
        draining = asyncio.create_task(self._drain_when_told())
        await self._uvicorn.serve(sockets=self._sockets)
        draining.cancel()

    async def start(self) -> None:
        """Start what runs beside uvicorn, within its loop."""
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGHUP, self._reload)
        if self._pool is not None:
            self._pool.start()

    async def drain(self) -> None:
        """Refuse new work, finish what is in flight within the drain timeout, then end.

        What is still at work after it (an image that is decoded, a body that comes slowly) is
        answered with 503.
        """
        end = time.monotonic() + self._settings.drain_timeout
        _LOG.info("draining", extra={"waiting_rows": self._service.queue.waiting_rows})
        await asyncio.to_thread(self._service.stop)
        await self._uvicorn.end_requests(end - time.monotonic())
        if self._pool is not None:
            await asyncio.to_thread(self._pool.stop, _HTTP_PROCESSES_END)
        self._uvicorn.should_exit = True

    async def _drain_when_told(self) -> None:
        await self._stopping.wait()
        await self.drain()

    def _stop(self) -> None:
        """Begin to drain; called from any thread, and from the handler of a signal."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    def _on_loaded(self, any_ready: bool) -> None:
        if not any_ready:
            self._fail("no model could be loaded: stopping")

    def _on_lost(self) -> None:
        self._fail("no worker is left: stopping")

    def _fail(self, reason: str) -> None:
        _LOG.error(reason)
        self._failed = True
        self._stop()

    def _reload(self) -> None:
        """Read the API keys and the certificate again, at SIGHUP."""
        self._app.state.keys.reload()
        if self._pool is not None:
            self._pool.reload()
        else:
            reload_certificate(self._config, self._settings)


def _require_temporary_folder() -> None:
    """Raise ValueError where HTTP processes have no place for the socket of the model process."""
    try:
        tempfile.gettempdir()
    except FileNotFoundError as error:
        raise ValueError(
            "HTTP processes need a temporary folder, and none may be written to: set TMPDIR, or "
            "leave out --http-processes"
        ) from error


def serve(settings: Settings) -> int:
    """Serve until a signal; the process's exit code. Raises ValueError as `Server` does."""
    return Server(settings).run()


def reachable_as(settings: Settings) -> list[str]:
    """Every address and name under which the settings say that the service is reached."""
    published = [each.strip() for each in settings.published_host.split(",")]
    return [each for each in published if each] or [settings.host]


def internal_config(app: ASGIApp) -> uvicorn.Config:
    """Of the model process that HTTP processes ask: over its own socket, which they alone know."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=_INTERNAL_KEEP_ALIVE,
        timeout_graceful_shutdown=2,
    )


def _still_working() -> bool:
    """Whether a thread outlives its service, such as a worker whose forward hangs."""
    end = time.monotonic() + _THREADS_END
    others = [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
        and (not thread.daemon or thread.name.startswith("vim-embed-"))
    ]
    for thread in others:
        thread.join(max(0.0, end - time.monotonic()))
    return any(thread.is_alive() for thread in others)
