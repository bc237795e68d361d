"""The service with the arithmetic engine as a process of its own, so that its memory can be seen.

`python tests/light_server.py FLAGS`: the flags of `vim-embed-server serve`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import httpx
import psutil
import uvicorn

from server_process import Started, free_port
from vim_embed.app import create_app
from vim_embed.cli import read_settings, settings_options
from vim_embed.engine import ArithmeticEngine
from vim_embed.listening import tcp_sockets, uvicorn_config
from vim_embed.logs import configure_logging


@contextmanager
def light_server(*flags: str) -> Iterator[Started]:
    """Run it with these flags until the end of the block."""
    port = free_port()
    log = Path(f"/tmp/vim-embed-light-{port}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, __file__, "--port", str(port), "--log-level", "warning", *flags],
            stderr=out,
        )
    try:
        started = Started(f"http://127.0.0.1:{port}", process, log)
        _wait(started)
        yield started
    finally:
        process.kill()
        process.wait(30)
        log.unlink()


def _wait(started: Started) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        assert started.process.poll() is None, started.log.read_text()
        try:
            if httpx.get(f"{started.url}/health/ready").is_success:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise AssertionError("the server did not become ready")


def megabytes(started: Started) -> float:
    """Resident memory of the process now."""
    return float(psutil.Process(started.process.pid).memory_info().rss) / 1e6


class Watched:
    """The highest resident memory of a process in a block, in MB beyond the beginning."""

    def __init__(self, started: Started) -> None:
        self._started = started
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.before = self._most = megabytes(started)

    @property
    def grown(self) -> float:
        return self._most - self.before

    def __enter__(self) -> Watched:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.005):
            self._most = max(self._most, megabytes(self._started))


@click.command()
@settings_options
def main(**flags: Any) -> None:
    settings = read_settings(flags)
    configure_logging(settings.log_level, "json")
    app = create_app(settings, ArithmeticEngine())
    refused = app.state.service.metrics.connection_refused
    server = uvicorn.Server(uvicorn_config(app, settings, on_refused=refused))
    server.run(sockets=tcp_sockets(settings, 1))


if __name__ == "__main__":
    main()
