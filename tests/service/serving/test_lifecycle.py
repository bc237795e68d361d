"""What happens around a request: a client that leaves, a deadline, a full queue, a slow load."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import numpy as np
import pytest

from support.serving import NPY, from_npy, npy, running
from vim_embed.batching.queue import BatchQueue
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.errors import QueueFull
from vim_embed.http.app import create_app
from vim_embed.server.body_header import HEADER, BodyHandoff, Handoff, failure
from vim_embed.settings import Settings

PIXELS = np.random.default_rng(1).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)


class SlowEngine(ArithmeticEngine):
    """Runs a batch only when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.entered = threading.Semaphore(0)
        self.rows = 0

    def run(self, staged: Staged) -> Outputs:
        self.entered.release()
        assert self.gate.wait(60)
        self.rows += staged.rows
        return super().run(staged)


@contextmanager
def slow_server(settings: Settings) -> Iterator[tuple[str, SlowEngine]]:
    engine = SlowEngine()
    with running(create_app(settings, engine)) as url:
        try:
            yield url, engine
        finally:
            engine.gate.set()


def post(url: str, query: str = "") -> httpx.Response:
    return httpx.post(f"{url}/embed{query}", content=npy(PIXELS), headers=NPY, timeout=60)


def waiting_rows(url: str) -> float:
    text = httpx.get(f"{url}/metrics").text
    line = next(x for x in text.splitlines() if x.startswith("vim_embed_waiting_rows"))
    return float(line.split()[-1])


def until_waiting(url: str, value: float) -> None:
    end = time.monotonic() + 20
    while waiting_rows(url) != value:
        assert time.monotonic() < end
        time.sleep(0.02)


def send_and_leave(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=60)
    body = npy(PIXELS)
    head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
    connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    return connection


def test_rows_of_a_client_that_left_cost_no_forward() -> None:
    with slow_server(Settings()) as (url, engine), ThreadPoolExecutor() as pool:
        first = pool.submit(post, url)
        assert engine.entered.acquire(timeout=20)
        gone = send_and_leave(url)
        until_waiting(url, len(PIXELS))
        gone.close()
        until_waiting(url, 0)
        engine.gate.set()
        assert first.result().status_code == 200
        assert post(url).status_code == 200
        assert engine.rows == 2 * len(PIXELS)
        assert 'vim_embed_dropped_rows_total{model="arithmetic",reason="cancelled"} 4.0' in (
            httpx.get(f"{url}/metrics").text
        )


def test_an_answer_that_takes_too_long() -> None:
    with slow_server(Settings(request_timeout=0.3)) as (url, engine):
        answer = post(url)
        assert answer.status_code == 504
        assert answer.json()["error"]["code"] == "deadline_exceeded"
        engine.gate.set()
        assert post(url).status_code == 200


def test_a_request_may_have_a_deadline_of_its_own() -> None:
    with slow_server(Settings()) as (url, engine), ThreadPoolExecutor() as pool:
        patient = pool.submit(post, url)
        assert engine.entered.acquire(timeout=20)
        begin = time.monotonic()
        hasty = post(url, "?timeout=0.4")
        assert 0.4 <= time.monotonic() - begin < 20
        assert hasty.status_code == 504
        assert hasty.json()["error"]["code"] == "deadline_exceeded"
        engine.gate.set()
        assert patient.result().status_code == 200
        assert post(url, "?timeout=60").status_code == 200
        assert engine.rows == 2 * len(PIXELS)  # the hasty one's rows never ran
        for wrong in ("0", "-1", "nan", "inf", "soon"):
            assert post(url, f"?timeout={wrong}").status_code == 422


def test_a_body_that_outlasts_the_deadline() -> None:
    def slowly() -> Iterator[bytes]:
        body = npy(PIXELS)
        yield body[:100]
        time.sleep(0.5)
        yield body[100:]

    with slow_server(Settings()) as (url, engine):
        answer = httpx.post(f"{url}/embed?timeout=0.2", content=slowly(), headers=NPY)
        assert answer.status_code == 504
        assert "timeout of 0.2 s" in answer.json()["error"]["message"]
        assert engine.rows == 0


def test_a_full_queue_says_when_to_retry() -> None:
    with slow_server(Settings(queue_rows=4)) as (url, engine), ThreadPoolExecutor() as pool:
        running_now = pool.submit(post, url)
        assert engine.entered.acquire(timeout=20)
        queued = pool.submit(post, url)
        until_waiting(url, len(PIXELS))
        refused = post(url)
        assert refused.status_code == 429
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["Retry-After"]) >= 1
        engine.gate.set()
        for answer in (running_now.result(), queued.result()):
            assert from_npy(answer.content).shape == (4, ArithmeticEngine.DIM)


def test_full_bodies_are_refused_until_rows_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """429 for want of memory comes with the queue's own estimate, whichever process gives it."""
    monkeypatch.setattr(BatchQueue, "retry_after", 17)
    body = npy(PIXELS)
    settings = Settings(inflight_bytes=len(body) + 9)
    with slow_server(settings) as (url, engine), ThreadPoolExecutor() as pool:
        held = pool.submit(post, url)
        assert engine.entered.acquire(timeout=20)
        refused = post(url)
        engine.gate.set()
        assert held.result().status_code == 200
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "17")
    app = create_app(Settings(), ArithmeticEngine())
    app.add_middleware(BodyHandoff, arenas=[])
    with running(app) as url:
        handed = {HEADER: Handoff(time.monotonic(), failed=failure(QueueFull("no room"))).encode()}
        refused = httpx.post(f"{url}/embed", headers=NPY | handed)
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "17")


def test_not_ready_while_loading() -> None:
    class LateEngine(ArithmeticEngine):
        """Loads when told to."""

        gate = threading.Event()

        def load(self) -> None:
            assert self.gate.wait(60)
            super().load()

    with running(create_app(Settings(), LateEngine()), wait=False) as url:
        assert httpx.get(f"{url}/health/live").status_code == 200
        assert httpx.get(f"{url}/health/ready").status_code == 503
        early = post(url)
        assert early.status_code == 503
        assert "loading" in early.json()["error"]["message"]
        LateEngine.gate.set()
        end = time.monotonic() + 20
        while httpx.get(f"{url}/health/ready").status_code != 200:
            assert time.monotonic() < end
        assert post(url).status_code == 200
