"""The header `Timeout`: late rows never reach the model, in one process and behind several."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from support.serving import NPY, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed_client import AsyncClient, Client, DeadlineExpiredError

PIXELS = np.zeros((2, 3, 8, 8), np.uint8)


class SlowEngine(ArithmeticEngine):
    """Keeps its rows until it is let go, and counts those that it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = 0
        self.gate = threading.Event()

    def run(self, staged: Staged) -> Outputs:
        outputs = super().run(staged)
        self.rows += len(outputs["embedding"])
        assert self.gate.wait(120)
        return outputs


@pytest.fixture
def slow() -> Iterator[tuple[str, SlowEngine]]:
    engine = SlowEngine()
    with running(create_app(Settings(), engine)) as url:
        yield url, engine
        engine.gate.set()


def embed(url: str, params: dict[str, Any] | None = None, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{url}/embed", content=npy(PIXELS), headers=NPY | headers, params=params, timeout=120
    )


def _waiting_rows(url: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    (line,) = (line for line in lines if line.startswith("vim_embed_waiting_rows "))
    return float(line.split()[1])


def occupied(url: str, engine: SlowEngine) -> threading.Thread:
    """Somebody else's rows are in the engine now, and stay there."""
    other = threading.Thread(target=embed, args=(url,))
    other.start()
    while not engine.rows:
        time.sleep(0.01)
    return other


@pytest.mark.parametrize(
    ("header", "parameter"), [("0.2", None), ("0.2", 60), ("60", 0.2), ("2e-1", None)]
)
def test_late_rows_never_reach_the_model(
    slow: tuple[str, SlowEngine], header: str, parameter: float | None
) -> None:
    url, engine = slow
    other = occupied(url, engine)
    late = embed(url, {} if parameter is None else {"timeout": parameter}, Timeout=header)
    assert late.status_code == 504
    assert late.json()["error"]["code"] == "deadline_exceeded"
    engine.gate.set()
    other.join()
    assert embed(url, Timeout="60").status_code == 200
    assert engine.rows == 4  # of the first and the last


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "soon", "", "2s", "1,2"])
def test_values_that_are_none(micro_url: str, value: str) -> None:
    pixels = np.zeros((1, 3, 64, 64), np.uint8)
    headers = NPY | {"Timeout": value}
    answer = httpx.post(f"{micro_url}/embed", content=npy(pixels), headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "invalid_input"
    assert "seconds" in answer.json()["error"]["message"]
    answer = httpx.post(f"{micro_url}/v2/models/micro/infer", content=b"{}", headers=headers)
    assert answer.status_code == 422
    assert "seconds" in answer.json()["error"]


def test_time_runs_from_the_first_byte(micro_url: str) -> None:
    host, port = micro_url.removeprefix("http://").split(":")
    body = npy(np.zeros((1, 3, 64, 64), np.uint8))
    for path in ("/embed", "/v2/models/micro/infer"):
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
            f"Timeout: 0.3\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        if path != "/embed":
            body = b'{"inputs": [{"name": "pixel_values", "shape": [1, 3, 64, 64], "datatype": '
            body += b'"UINT8", "data": [' + b"0," * (3 * 64 * 64 - 1) + b"0]}]}"
            head = head.replace(head.split("Length: ")[1].split("\r\n")[0], str(len(body)))
        with socket.create_connection((host, int(port)), timeout=30) as connection:
            connection.sendall(head.encode() + body[:50])
            time.sleep(0.5)
            connection.sendall(body[50:])
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 504"), answer[:300]
        assert b"reading the body" in answer


async def test_clients_send_what_is_left(slow: tuple[str, SlowEngine]) -> None:
    url, engine = slow
    other = occupied(url, engine)
    with Client(url, deadline=0.3) as client, pytest.raises(DeadlineExpiredError):
        client.embed(PIXELS)
    async with AsyncClient(url, deadline=0.3) as aio:
        with pytest.raises(DeadlineExpiredError):
            await aio.embed(PIXELS)
    while _waiting_rows(url):  # the service gives up after its client, never before
        await asyncio.sleep(0.02)
    engine.gate.set()
    other.join()
    with Client(url) as client:
        client.embed(PIXELS)
    assert engine.rows == 4  # of the first and the last
