"""Runs the application under uvicorn and drains it on SIGTERM or SIGINT.

The first signal makes the service refuse new work (503) while what is in flight finishes; then the
process ends with code 0. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType

import uvicorn
from starlette.types import ASGIApp

from vim_embed.http.app import create_app
from vim_embed.http.auth import Keys, accepted_keys, require_keys
from vim_embed.server.body_header import HandedOver
from vim_embed.server.connection_limits import ConnectionLimits, allow_open_files
from vim_embed.server.http_pool import FrontProcesses
from vim_embed.server.sockets import reload_certificate, tcp_sockets, unix_socket, uvicorn_config
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
FAILED = 1
_FRONTS_PATIENCE = 10.0  # seconds that HTTP processes get for their last answers


class DrainingServer(uvicorn.Server):
    """uvicorn that keeps listening while the service drains."""

    def __init__(self, config: uvicorn.Config, begin_drain: threading.Event) -> None:
        super().__init__(config)
        self._begin_drain = begin_drain

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._begin_drain.is_set():
            super().handle_exit(sig, frame)
        self._begin_drain.set()


def serve(settings: Settings) -> int:
    """Serve until a signal; the process's exit code: 1 if it could not start or load a model.

    Raises ValueError if the settings contradict each other or open the service to everybody.
    """
    require_keys(accepted_keys(settings), settings.published_host or settings.host)
    allow_open_files(ConnectionLimits.of(settings))
    stopping, failed = threading.Event(), threading.Event()

    def on_loaded(any_ready: bool) -> None:
        if not any_ready:
            _LOG.error("no model could be loaded: stopping")
            failed.set()
            stopping.set()

    def on_lost() -> None:
        _LOG.error("no worker is left: stopping")
        failed.set()
        stopping.set()

    app = create_app(settings, on_loaded=on_loaded, on_lost=on_lost)
    service = app.state.service
    on_refused, fronts = service.metrics.connection_refused, None
    config = uvicorn_config(app, settings, on_refused=on_refused)
    sockets = tcp_sockets(settings, settings.http_processes)
    unix = [unix_socket(Path(settings.unix_socket))] if settings.unix_socket else []
    if settings.http_processes > 1:
        fronts = FrontProcesses(settings, [[each, *unix] for each in sockets], on_refused)
        config = internal_config(HandedOver(app, fronts.arenas))
    internal = [] if fronts is None else [unix_socket(Path(fronts.upstream))]
    server = DrainingServer(config, stopping)

    async def drain() -> None:
        while not stopping.is_set():
            await asyncio.sleep(0.05)
        _LOG.info("draining", extra={"waiting_rows": service.queue.waiting_rows})
        await asyncio.to_thread(service.stop)
        if fronts is not None:
            await asyncio.to_thread(fronts.stop, _FRONTS_PATIENCE)
        server.should_exit = True

    async def run() -> None:
        on_hangup(config, settings, app.state.keys, fronts)
        draining = asyncio.create_task(drain())
        if fronts is not None:
            fronts.start()
        await server.serve(sockets=internal or [*sockets, *unix])
        draining.cancel()

    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:  # uvloop, if there
            runner.run(run())
    except SystemExit:  # uvicorn could not start, and has logged why
        failed.set()
    code = FAILED if failed.is_set() else 0
    if settings.unix_socket:
        Path(settings.unix_socket).unlink(missing_ok=True)
    if _still_working():
        logging.shutdown()  # native code cannot be interrupted, and aborts if Python ends under it
        os._exit(code)
    return code


def _still_working() -> bool:
    """Whether a thread of the service outlived its stop, such as a worker whose forward hangs."""
    return any(thread.name.startswith("vim-embed-") for thread in threading.enumerate())


def on_hangup(
    config: uvicorn.Config, settings: Settings, keys: Keys, fronts: FrontProcesses | None
) -> None:
    """From now on SIGHUP reads the API keys and the certificate again."""

    def reload() -> None:
        keys.reload()
        if fronts is not None:
            fronts.hang_up()
        else:
            reload_certificate(config, settings)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reload)


def internal_config(app: ASGIApp) -> uvicorn.Config:
    """Of the model process that HTTP processes ask: over its own socket, which they alone know."""
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=True,
        forwarded_allow_ips="*",
        timeout_keep_alive=3600,
    )
