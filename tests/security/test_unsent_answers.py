"""Answers that clients do not take are counted; clients that leave end what was done for them.

The same with several HTTP processes: tests/hostile/test_slow_readers.py.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack

import httpx
import numpy as np
import psutil

from security.processes import MIB
from security.raw_http import head
from security.test_image_bounds import SMALL
from support.serving import NPY, from_npy, npy, running
from support.waiting import until
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.http.formats.image_pool import DecoderPool
from vim_embed.settings import Settings

WIDTH = 32_768  # of 8 numbers, a MiB a row
PIXELS = np.zeros((8, 3, 1, 1), np.uint8)
ROOM = 16 * MIB  # one answer of 8 rows fits, not two


class WideEngine(ArithmeticEngine):
    def run(self, staged: Staged) -> Outputs:
        return {name: np.tile(array, (1, WIDTH)) for name, array in super().run(staged).items()}


def ask(url: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=npy(PIXELS), headers=NPY, timeout=60)


def ask_and_read_nothing(url: str) -> socket.socket:
    """The connection, once its answer has begun."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(60)
    parts = httpx.URL(url)
    connection.connect((parts.host, parts.port))
    body = npy(PIXELS)
    top = head(Content_Type="application/x-npy", Content_Length=str(len(body)))
    connection.sendall(top + body)
    assert connection.recv(5) == b"HTTP/"
    return connection


def refused(url: str) -> bool:
    """Whether an answer has no room; fails for other refusals."""
    answer = ask(url)
    if answer.status_code == 200:
        return False
    assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
    assert int(answer.headers["Retry-After"]) >= 1
    return True


def test_what_slow_readers_leave_is_counted() -> None:
    app = create_app(Settings(inflight_bytes=ROOM, max_body_bytes=MIB), WideEngine())
    with running(app) as url, ExitStack() as slow:
        right = from_npy(ask(url).content)
        slow.enter_context(ask_and_read_nothing(url))
        assert app.state.arena.held >= 8 * MIB
        assert refused(url)
        assert httpx.get(f"{url}/health/ready").status_code == 200
        slow.close()
        until(lambda: app.state.arena.held == 0)
        assert np.array_equal(from_npy(ask(url).content), right)


def test_a_client_that_leaves_ends_its_decoding() -> None:
    """The decoder stands still, as if its image took for ever."""
    app = create_app(Settings(), ArithmeticEngine())
    pool: DecoderPool = app.state.decoders
    kind = {"Content-Type": "image/png"}
    with running(app) as url:
        assert httpx.post(f"{url}/embed", content=SMALL[0], headers=kind).status_code == 200
        (process,) = pool._idle
        decoder = psutil.Process(process._process.pid)
        decoder.suspend()
        parts = httpx.URL(url)
        with socket.create_connection((parts.host, parts.port)) as connection:
            top = head(Content_Type="image/png", Content_Length=str(len(SMALL[0])))
            connection.sendall(top + SMALL[0])
            until(lambda: bool(process._sent))
        until(lambda: not decoder.is_running())
        until(lambda: app.state.arena.held == 0)
        assert httpx.post(f"{url}/embed", content=SMALL[0], headers=kind).status_code == 200
