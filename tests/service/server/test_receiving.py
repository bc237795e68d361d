"""Large bodies straight into memory: in odd pieces, cut short, too slow, one after another."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from support.serving import NPY, from_npy, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings

PIXELS = np.random.default_rng(3).integers(0, 256, (500, 3, 32, 32), dtype=np.uint8)
BODY = npy(PIXELS)  # 1.5 MB
HEAD = (
    "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
    f"Content-Length: {len(BODY)}\r\n"
)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(body_timeout=1.0)
    with running(create_app(settings, ArithmeticEngine(image_size=32))) as address:
        yield address


@pytest.fixture(scope="module")
def right(url: str) -> bytes:
    parts = []
    for start in range(0, 500, 50):  # small enough for the usual way
        content = npy(PIXELS[start : start + 50])
        assert len(content) < 256 * 1024
        parts.append(from_npy(httpx.post(f"{url}/embed", content=content, headers=NPY).content))
    return npy(np.concatenate(parts))


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of the next answer; nothing of the one after it is read."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = connection.recv(1)
        assert byte, "the connection ended"
        head += byte
    lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
    length, body = int(lengths[0].split(b":")[1]), b""
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(head.split()[1]), body


@pytest.mark.parametrize("pieces", [[], [1], [100_000], [len(BODY) - 1], [7, 70_000, 1_000_000]])
def test_whatever_the_pieces(url: str, right: bytes, pieces: list[int]) -> None:
    with connect(url) as connection:
        for _ in range(3):  # on one connection
            connection.sendall(f"{HEAD}\r\n".encode())
            for start, stop in zip([0, *pieces], [*pieces, len(BODY)], strict=True):
                time.sleep(0.02)
                connection.sendall(BODY[start:stop])
            assert answer(connection) == (200, right)


def test_requests_that_do_not_wait_for_their_answers(url: str, right: bytes) -> None:
    request = f"{HEAD}\r\n".encode() + BODY
    small = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connect(url) as connection:
        connection.sendall(request + small + request + small)
        assert answer(connection) == (200, right)
        assert answer(connection)[0] == 200
        assert answer(connection) == (200, right)
        assert answer(connection)[0] == 200


def test_a_client_that_asks_before_it_sends(url: str, right: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(f"{HEAD}Expect: 100-continue\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(BODY)
        assert answer(connection) == (200, right)


def test_a_body_that_stops_coming(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(f"{HEAD}\r\n".encode() + BODY[:700_000])
        status, body = answer(connection)
        assert status == 408
        assert b"request_timeout" in body
        assert connection.recv(100) == b""  # closed: the rest would be taken for a request


def test_a_slow_body_is_waited_for(url: str, right: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(f"{HEAD}\r\n".encode())
        for start in range(0, len(BODY), 300_000):
            time.sleep(0.4)  # longer in all than the limit between two parts
            connection.sendall(BODY[start : start + 300_000])
        assert answer(connection) == (200, right)


def test_clients_that_leave_in_the_middle(url: str, right: bytes) -> None:
    for sent in (0, 10, 500_000, len(BODY) - 1):
        with connect(url) as connection:
            connection.sendall(f"{HEAD}\r\n".encode() + BODY[:sent])
    time.sleep(0.2)
    found = httpx.post(f"{url}/embed", content=BODY, headers=NPY, timeout=20)
    assert found.content == right
