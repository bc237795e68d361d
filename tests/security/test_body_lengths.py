"""Large bodies and lengths that lie, against a server process whose memory is watched."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import httpx
import numpy as np
import pytest

from light_server import Watched, light_server
from raw_http import connect, error, head, status, until_closed
from server_process import Started
from serving import NPY, from_npy, npy
from vim_embed_client import Client, PayloadTooLargeError

MB = 1_000_000
LIMIT = 64 * MB
ROWS = 160
PIXELS = np.broadcast_to(np.arange(ROWS, dtype=np.uint8)[:, None, None, None], (ROWS, 3, 224, 224))


@pytest.fixture(scope="module")
def started() -> Iterator[Started]:
    flags = ("--max-body-bytes", str(LIMIT), "--body-timeout", "1", "--header-timeout", "1")
    with light_server(*flags) as started:
        httpx.post(f"{started.url}/embed", content=npy(PIXELS), headers=NPY, timeout=60)
        yield started


@pytest.fixture(autouse=True)
def _still_fine(started: Started) -> Iterator[None]:
    yield
    answer = httpx.post(f"{started.url}/embed", content=npy(PIXELS[:3]), headers=NPY)
    assert from_npy(answer.content)[:, 0].tolist() == [0, 1, 2]


def sent(started: Started, data: bytes, *more: bytes) -> bytes:
    """All that comes back before the server closes the connection."""
    with connect(started.url) as connection:
        try:
            for part in (data, *more):
                connection.sendall(part)
        except OSError:  # closed while it was sent; the answer may be there
            pass
        return until_closed(connection)


def test_a_body_of_24_mb_is_embedded(started: Started) -> None:
    body = npy(PIXELS)
    assert len(body) > 24 * MB
    with Watched(started) as watched:
        answer = httpx.post(f"{started.url}/embed", content=body, headers=NPY, timeout=60)
    assert from_npy(answer.content)[:, 0].tolist() == list(range(ROWS))
    assert watched.grown < 3 * 24


@pytest.mark.parametrize("length", [LIMIT + 1, 2_000 * MB, 10**15, 2**63])
def test_a_length_over_the_limit_is_refused_before_the_body(started: Started, length: int) -> None:
    with Watched(started) as watched:
        answer = sent(started, head(**_npy(length)), bytes(MB))
    assert (status(answer), error(answer)["code"]) == (413, "payload_too_large")
    assert b"connection: close" in answer
    assert watched.grown < 10


def test_a_length_over_the_limit_that_is_really_sent(started: Started) -> None:
    with Watched(started) as watched, connect(started.url) as connection:
        connection.sendall(head(**_npy(2_000 * MB)))
        taken = _send_until_closed(connection, 2_000 * MB)
    assert taken < 2_000 * MB  # the server does not read it all
    assert watched.grown < 10


def test_a_client_that_sends_too_much_reads_why(started: Started) -> None:
    answer = httpx.post(f"{started.url}/embed", content=bytes(100 * MB), headers=NPY)
    assert answer.status_code == 413
    with Client(started.url, rows_per_request=10**6, max_retries=0) as client:
        pixels = np.zeros((70, 3, 560, 560), np.uint8)  # one request of 66 MB
        with pytest.raises(PayloadTooLargeError):
            client.embed(pixels)


def test_chunks_without_end(started: Started) -> None:
    with Watched(started) as watched, connect(started.url) as connection:
        connection.sendall(head(Content_Type="application/x-npy", Transfer_Encoding="chunked"))
        chunk = b"10000\r\n" + bytes(65536) + b"\r\n"
        taken = _send_until_closed(connection, 2_000 * MB, chunk)
        answer = _rest(connection)
    assert (status(answer), error(answer)["code"]) == (413, "payload_too_large")
    assert LIMIT <= taken < 2_000 * MB
    assert watched.grown < 2.5 * LIMIT / MB


def test_chunk_extensions_without_end(started: Started) -> None:
    with Watched(started) as watched, connect(started.url) as connection:
        connection.sendall(head(Content_Type="application/x-npy", Transfer_Encoding="chunked"))
        connection.sendall(b"1;")
        taken = _send_until_closed(connection, 2_000 * MB, b"x" * 65536)
        assert status(_rest(connection)) == 431
    assert taken < 200 * MB
    assert watched.grown < 10


def test_a_length_that_is_longer_than_the_body(started: Started) -> None:
    body = npy(PIXELS[:1])
    begin = time.monotonic()
    with Watched(started) as watched:
        answer = sent(started, head(**_npy(60 * MB)), body)
    assert time.monotonic() - begin < 8
    assert (status(answer), error(answer)["code"]) == (408, "request_timeout")
    assert watched.grown < 10  # what is only claimed takes no memory


def test_many_long_lengths_at_once(started: Started) -> None:
    with Watched(started) as watched:
        connections = [connect(started.url) for _ in range(60)]
        for connection in connections:
            connection.sendall(head(**_npy(60 * MB)) + bytes(1000))
        answers = [until_closed(connection) for connection in connections]
        for connection in connections:
            connection.close()
    assert {status(answer) for answer in answers} <= {408, 429}
    assert watched.grown < 30


def test_a_client_that_ends_the_body_early(started: Started) -> None:
    with connect(started.url) as connection:
        connection.sendall(head(**_npy(60 * MB)) + bytes(1000))
        connection.shutdown(socket.SHUT_WR)
        assert until_closed(connection) == b""


def test_a_length_that_is_shorter_than_the_body(started: Started) -> None:
    body = npy(PIXELS[:1])
    answer = sent(started, head(**_npy(len(body))), body + b"\x00 more than was said")
    assert status(answer) == 200  # of what was said; the rest is no request
    assert answer.count(b"HTTP/1.1") == 1
    answer = sent(started, head(**_npy(1000)), body)
    assert status(answer) == 400
    assert b"cut short" in answer


@pytest.mark.parametrize(
    "lines",
    [
        "Content-Length: -5",
        "Content-Length: +5",
        "Content-Length: 0x10",
        "Content-Length: 5 5",
        "Content-Length: 5,5",
        "Content-Length: five",
        "Content-Length: " + "9" * 40,
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Transfer-Encoding: chunked, gzip",
    ],
)
def test_lengths_that_are_none(started: Started, lines: str) -> None:
    top = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-npy\r\n{lines}\r\n\r\n"
    answer = sent(started, top.encode(), b"hello")
    assert (status(answer), error(answer)["code"]) == (400, "malformed_request")
    assert b"connection: close" in answer


@pytest.mark.parametrize("size", ["-1", "zz", "F" * 20, "5 5", ""])
def test_chunk_sizes_that_are_none(started: Started, size: str) -> None:
    top = head(Content_Type="application/x-npy", Transfer_Encoding="chunked")
    answer = sent(started, top, f"{size}\r\nhello\r\n0\r\n\r\n".encode())
    assert (status(answer), error(answer)["code"]) == (400, "malformed_request")


def test_a_route_without_a_body_gets_one(started: Started) -> None:
    with Watched(started) as watched, connect(started.url) as connection:
        connection.sendall(head("GET", "/models", Content_Length=str(2_000 * MB)))
        taken = _send_until_closed(connection, 2_000 * MB)
        assert status(_rest(connection)) == 200
    assert taken < 2_000 * MB
    assert watched.grown < 10


def _npy(length: int) -> dict[str, str]:
    return {"Content_Type": "application/x-npy", "Content_Length": str(length)}


def _send_until_closed(connection: socket.socket, most: int, piece: bytes = bytes(65536)) -> int:
    """Send the same piece again and again; the bytes that the other side took."""
    taken = 0
    while taken < most:
        try:
            connection.sendall(piece)
        except OSError:
            break
        taken += len(piece)
    return taken


def _rest(connection: socket.socket) -> bytes:
    """The answer that was there before the connection broke."""
    return until_closed(connection)
