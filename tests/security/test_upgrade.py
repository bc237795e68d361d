"""Requests that offer another protocol: answered as they stand, with their body, and once."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import numpy as np
import pytest

from security.raw_http import connect, error, status, until_closed
from support.serving import from_npy, npy, running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.settings import Settings

SMUGGLED = b"GET /models HTTP/1.1\r\nHost: localhost\r\n\r\n"
PIXELS = np.frombuffer((SMUGGLED * 5)[:192], np.uint8).reshape(1, 3, 8, 8)
BODY = npy(PIXELS)  # its pixels are the bytes of requests
LARGE = npy(np.resize(np.frombuffer(SMUGGLED, np.uint8), (2000, 3, 8, 8)))  # straight into memory
LAST = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"

OFFERS = {
    "a stock JDK client": (
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    ),
    "websocket": (
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    ),
    "TLS": "Upgrade: TLS/1.0, HTTP/1.1\r\nConnection: upgrade\r\n",
    "two lines": "Connection: close-not\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nUpgrade: x\r\n",
    "no name of a protocol": "Connection: upgrade\r\n",
    "no offer in Connection": "Upgrade: h2c\r\n",
}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(max_rows=4000, body_timeout=5)
    with running(create_app(settings, ArithmeticEngine())) as url:
        yield url


@pytest.fixture(scope="module")
def right(url: str) -> dict[bytes, bytes]:
    found = {}
    for body in (BODY, LARGE):
        with connect(url) as connection:
            connection.sendall(_head("", body) + body + LAST)
            found[body] = _answers(until_closed(connection))[0]
    return found


def _head(offer: str, body: bytes, *, version: str = "1.1", length: str = "") -> bytes:
    framing = length or f"Content-Length: {len(body)}"
    return (
        f"POST /embed HTTP/{version}\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
        f"{framing}\r\n{offer}\r\n"
    ).encode()


def _chunked(body: bytes, size: int = 100) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _answers(received: bytes) -> list[bytes]:
    """The bodies of the answers in what came over a connection; all are 200."""
    found = []
    while received:
        assert status(received) == 200, received[:300]
        top, _, rest = received.partition(b"\r\n\r\n")
        (length,) = [
            int(line.partition(b":")[2])
            for line in top.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        ]
        found.append(rest[:length])
        received = rest[length:]
    return found


def _send(connection: socket.socket, parts: list[bytes]) -> None:
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for part in parts:
        connection.sendall(part)


def _segmentations(top: bytes, body: bytes) -> Iterator[list[bytes]]:
    whole = top + body + LAST
    yield [whole]
    yield [top, body, LAST]
    yield [top + body[:1], body[1:] + LAST]
    yield [top[:-1], top[-1:] + body[:50], body[50:] + LAST[:5], LAST[5:]]
    if len(body) < 1000:
        yield [whole[place : place + 1] for place in range(len(whole))]


@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
@pytest.mark.parametrize("coding", ["length", "chunked", "large"])
def test_the_body_is_read_and_no_byte_of_it_is_a_request(
    url: str, right: dict[bytes, bytes], offer: str, coding: str
) -> None:
    body = LARGE if coding == "large" else BODY
    length = "Transfer-Encoding: chunked" if coding == "chunked" else ""
    sent = _chunked(body) if coding == "chunked" else body
    for parts in _segmentations(_head(offer, body, length=length), sent):
        with connect(url) as connection:
            _send(connection, parts)
            embedded, live = _answers(until_closed(connection))
        assert embedded == right[body]
        assert live == b'{"status":"live"}'
    assert from_npy(right[BODY]).shape[0] == 1


def test_offers_one_after_another_on_one_connection(url: str, right: dict[bytes, bytes]) -> None:
    request = b"".join(_head(offer, BODY) + BODY for offer in OFFERS.values())
    with connect(url) as connection:
        connection.sendall(request + LAST)
        answers = _answers(until_closed(connection))
    assert answers == [right[BODY]] * len(OFFERS) + [b'{"status":"live"}']


def test_a_client_that_asks_first_and_offers(url: str, right: dict[bytes, bytes]) -> None:
    offer = OFFERS["a stock JDK client"] + "Expect: 100-continue\r\n"
    with connect(url) as connection:
        connection.sendall(_head(offer, BODY))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 Continue")
        connection.sendall(BODY + LAST)
        assert _answers(until_closed(connection))[0] == right[BODY]


def test_an_old_client_that_offers(url: str, right: dict[bytes, bytes]) -> None:
    top = _head(OFFERS["a stock JDK client"], BODY, version="1.0")
    with connect(url) as connection:
        _send(connection, [top, BODY, LAST])
        assert _answers(until_closed(connection)) == [right[BODY]]


@pytest.mark.parametrize(
    "framing",
    [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: -1",
        "Content-Length: 5,5",
    ],
)
def test_ambiguous_lengths_are_refused_with_an_offer_too(url: str, framing: str) -> None:
    for offer in OFFERS.values():
        with connect(url) as connection:
            connection.sendall(_head(offer, BODY, length=framing) + SMUGGLED)
            answer = until_closed(connection)
        assert answer.count(b"HTTP/1.1 ") == 1
        assert (status(answer), error(answer)["code"]) == (400, "malformed_request")


def test_the_body_of_a_request_that_is_refused_is_no_request(url: str) -> None:
    for path in (b"/embed?pooling=none", b"/no/such/route", b"/models"):
        top = _head(OFFERS["websocket"], 2 * SMUGGLED).replace(b"/embed", path)
        with connect(url) as connection:
            _send(connection, [top, SMUGGLED, SMUGGLED, LAST])
            answer = until_closed(connection)
        assert 400 <= status(answer) < 500
        assert b'"models"' not in answer


@pytest.mark.parametrize("target", [b"localhost:80", b"/embed", b"*"])
def test_connect_is_not_taken(url: str, target: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(b"CONNECT %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % target + SMUGGLED)
        answer = until_closed(connection)
    assert answer.count(b"HTTP/1.1 ") == 1
    assert (status(answer), error(answer)["code"]) == (400, "malformed_request")


def test_blanks_around_a_header_s_value_are_no_part_of_it(
    url: str, right: dict[bytes, bytes]
) -> None:
    top = _head("", BODY, length=f"Content-Length: \t{len(BODY)} \t")
    top = top.replace(b"x-npy\r\n", b"x-npy\t \r\nTimeout: 20 \r\n")
    with connect(url) as connection:
        connection.sendall(top + BODY + LAST)
        assert _answers(until_closed(connection))[0] == right[BODY]
