"""Bodies that are too large, endless, or other than their Content-Length says: bounded memory.

Bodies are streamed from one small buffer, and the server is a process whose memory is read while
they arrive.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx
import numpy as np
import pytest

from security.processes import MIB, ServerProcess, server_process
from support.serving import NPY, npy
from vim_embed.settings import Settings
from vim_embed_client import Client, PayloadTooLargeError

LIMIT = 32 * MIB
SILENCE = 4.5  # seconds without an end: the connection is kept
SLACK = 24 * MIB  # of memory, beyond what a body needs
_PIECE = bytes(MIB)
_CLOSE = "Connection: close"
_GOOD = npy(np.zeros((1, 3, 8, 8), np.uint8))
FLAGS = ("--max-body-bytes", str(LIMIT), "--body-timeout", "1", "--log-level", "error")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), *FLAGS) as running:
        for _ in range(3):  # so that what is loaded at first use is loaded
            send(running, head(_CLOSE, length=len(_GOOD)), [_GOOD])
        yield running


@dataclass
class Watch:
    """Memory of a process while something happens, in bytes."""

    before: int
    peak: int = 0

    @property
    def growth(self) -> int:
        return self.peak - self.before


@contextmanager
def watching(server: ServerProcess) -> Iterator[Watch]:
    """Read the server's memory every few milliseconds."""
    watch, done = Watch(server.rss), threading.Event()

    def read() -> None:
        while not done.wait(0.005):
            watch.peak = max(watch.peak, server.rss)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield watch
    finally:
        watch.peak = max(watch.peak, server.rss)
        done.set()
        thread.join()
        print(f"memory at most {watch.growth / MIB:+.1f} MiB")  # of docs/security.md, with -s


@dataclass
class Answer:
    """The first answer on a connection; what was sent before it came; whether the server left."""

    status: int
    text: str
    sent: int
    closed: bool


def head(*more: str, length: int | None = None, path: str = "/embed") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/x-npy", *more]
    if length is not None:
        lines.append(f"Content-Length: {length}")
    return "\r\n".join([*lines, "", ""]).encode()


def send(server: ServerProcess, start: bytes, pieces: Iterable[bytes]) -> Answer:
    """Send raw bytes until the server answers or leaves."""
    sent = 0
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as out:
        out.sendall(start)
        with suppress(ConnectionError):
            for piece in pieces:
                out.sendall(piece)
                sent += len(piece)
        received, closed = _receive(out)
    first = received.split(b" ", 2)
    status = int(first[1]) if len(first) > 2 else 0
    return Answer(status, received.decode("latin-1"), sent, closed)


def _receive(out: socket.socket) -> tuple[bytes, bool]:
    """What comes until the server closes, or has been silent for a while; and which it was."""
    received = b""
    out.settimeout(SILENCE)
    try:
        while piece := out.recv(65536):
            received += piece
    except TimeoutError:
        return received, False
    except ConnectionError:
        return received, True
    return received, True


def zeros(size: int) -> Iterator[bytes]:
    for start in range(0, size, MIB):
        yield _PIECE[: min(MIB, size - start)]


def chunked(pieces: Iterable[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        yield b"%x\r\n%b\r\n" % (len(piece), piece)


def still_fine(server: ServerProcess) -> None:
    answer = httpx.post(f"{server.url}/embed", content=_GOOD, headers=NPY)
    assert answer.status_code == 200


@pytest.mark.parametrize("mib", [31, 24])
def test_a_body_within_the_limit_is_held_once(server: ServerProcess, mib: int) -> None:
    with watching(server) as watch:
        answer = send(server, head(_CLOSE, length=mib * MIB), zeros(mib * MIB))
    assert answer.status == 400  # zeros are no npy file
    assert "npy" in answer.text
    assert watch.growth < mib * MIB + SLACK
    still_fine(server)


SIZES = [33, 256, *(pytest.param(mib, marks=pytest.mark.soak) for mib in (1024, 2047, 2048))]


@pytest.mark.parametrize("mib", SIZES)
def test_an_announced_large_body_is_refused_unread(server: ServerProcess, mib: int) -> None:
    with watching(server) as watch:
        answer = send(server, head(_CLOSE, length=mib * MIB), zeros(mib * MIB))
    refused(answer, 413, "payload_too_large")
    assert watch.growth < SLACK
    still_fine(server)


@pytest.mark.parametrize("mib", SIZES)
def test_a_large_chunked_body_is_refused_at_the_limit(server: ServerProcess, mib: int) -> None:
    start = head("Transfer-Encoding: chunked", _CLOSE)
    with watching(server) as watch:
        answer = send(server, start, chunked(zeros(mib * MIB)))
    refused(answer, 413, "payload_too_large")
    assert watch.growth < 2 * LIMIT + SLACK  # a growing buffer is copied as it grows
    still_fine(server)


def test_a_chunked_body_without_end(server: ServerProcess) -> None:
    """What a client goes on sending after the refusal is not kept, and the connection ends."""

    def endless() -> Iterator[bytes]:
        while time.monotonic() < begin + 40:
            yield _PIECE

    begin = time.monotonic()
    with watching(server) as watch:
        answer = send(server, head("Transfer-Encoding: chunked"), chunked(endless()))
    refused(answer, 413, "payload_too_large")
    assert watch.growth < 2 * LIMIT + SLACK
    assert time.monotonic() - begin < 20, "the server went on listening"
    still_fine(server)


def test_many_chunks_of_one_byte(server: ServerProcess) -> None:
    pieces = (b"1\r\nx\r\n" * 10_000 for _ in range(20))
    start = head("Transfer-Encoding: chunked", _CLOSE)
    with watching(server) as watch:
        answer = send(server, start, (*pieces, b"0\r\n\r\n"))
    assert answer.status == 400
    assert watch.growth < SLACK
    still_fine(server)


@pytest.mark.parametrize("promised", [len(_GOOD) + 1, LIMIT])
def test_a_body_shorter_than_it_says(server: ServerProcess, promised: int) -> None:
    """The rest never comes: 408 after the timeout, and no memory for what was only promised."""
    with watching(server) as watch:
        answer = send(server, head(length=promised), [_GOOD])
    refused(answer, 408, "request_timeout")
    assert watch.growth < SLACK
    still_fine(server)


def test_many_promises_that_are_not_kept(server: ServerProcess) -> None:
    """Forty connections that announce the limit and send little cost next to nothing."""
    connections = []
    with watching(server) as watch:
        for _ in range(40):
            out = socket.create_connection(("127.0.0.1", server.port), timeout=60)
            out.sendall(head(length=LIMIT) + bytes(1000))
            connections.append(out)
        answers = [_receive(out)[0] for out in connections]
    for out in connections:
        out.close()
    assert all(answer.startswith(b"HTTP/1.1 408") for answer in answers)
    assert watch.growth < SLACK
    still_fine(server)


def test_a_body_longer_than_it_says(server: ServerProcess) -> None:
    """What follows the body is no request: it ends the connection, and is never computed."""
    answer = send(server, head(length=len(_GOOD)), [_GOOD, b"and a lot more" * 10])
    assert answer.text.count("HTTP/1.1 200") == 1
    assert answer.text.count("HTTP/1.1") - answer.text.count("HTTP/1.1 400") == 1
    assert answer.closed
    still_fine(server)


def test_a_client_that_sends_all_of_a_refused_body_can_go_on(server: ServerProcess) -> None:
    size = LIMIT + MIB
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            answer = client.post("/embed", content=_sized(size), headers=_headers(size))
            assert (answer.status_code, answer.json()["error"]["code"]) == (
                413,
                "payload_too_large",
            )
            assert client.post("/embed", content=_GOOD, headers=NPY).status_code == 200


def _sized(size: int) -> Iterator[bytes]:
    yield from zeros(size)


def _headers(size: int) -> dict[str, str]:
    return {**NPY, "Content-Length": str(size)}


LIES = {
    "two lengths": head("Content-Length: 5", length=len(_GOOD)),
    "two equal lengths": head(f"Content-Length: {len(_GOOD)}", length=len(_GOOD)),
    "length and chunked": head("Transfer-Encoding: chunked", length=len(_GOOD)),
    "negative": head("Content-Length: -1"),
    "signed": head("Content-Length: +5"),
    "hexadecimal": head("Content-Length: 0x10"),
    "beyond 64 bits": head("Content-Length: 99999999999999999999999999"),
    "a list": head("Content-Length: 5, 5"),
    "empty": head("Content-Length: "),
    "a word": head("Content-Length: many"),
    "unknown coding": head("Transfer-Encoding: gzip, identity"),
    "a coding before chunked": head("Transfer-Encoding: gzip, chunked"),
}


@pytest.mark.parametrize("start", LIES.values(), ids=LIES.keys())
def test_a_length_that_cannot_be_is_refused(server: ServerProcess, start: bytes) -> None:
    """What two readers could understand differently is the way to smuggle requests."""
    answer = send(server, start, [_GOOD])
    refused(answer, 400, "malformed_request")
    still_fine(server)


@pytest.mark.parametrize("size", ["fffffffffffffffff", "-1", "xyz", "7fffffffffffffff"])
def test_a_chunk_size_that_cannot_be(server: ServerProcess, size: str) -> None:
    with watching(server) as watch:
        answer = send(server, head("Transfer-Encoding: chunked"), [f"{size}\r\n".encode(), _GOOD])
    assert answer.status in (400, 408)
    assert answer.closed
    assert watch.growth < SLACK
    still_fine(server)


ENDLESS_HEADS = {
    "many headers": (b"X-%d: %b\r\n" % (n, b"x" * 1_000) for n in range(200_000)),
    "one header": (b"X: ", *(b"x" * 60_000 for _ in range(3_000))),
}


@pytest.mark.parametrize("lines", ENDLESS_HEADS.values(), ids=ENDLESS_HEADS.keys())
def test_a_head_without_end(server: ServerProcess, lines: Iterable[bytes]) -> None:
    with watching(server) as watch:
        answer = send(server, head()[:-2], lines)
    assert answer.closed
    assert answer.status in (0, 431)  # 0: the reset overtook the answer
    assert answer.sent < 40 * MIB
    assert watch.growth < SLACK
    still_fine(server)


def test_a_head_over_the_limit_is_told_so(server: ServerProcess) -> None:
    answer = send(server, head(*(f"X-{n}: {'x' * 7_000}" for n in range(60)))[:-2], [])
    refused(answer, 431, "head_too_large")
    assert str(Settings().max_header_bytes) in answer.text


def test_trailers_without_end(server: ServerProcess) -> None:
    def trailers() -> Iterator[bytes]:
        end = time.monotonic() + 6
        while time.monotonic() < end:
            yield b"X: %b\r\n" % (b"x" * 60_000)

    start = head("Transfer-Encoding: chunked") + b"0\r\n"
    with watching(server) as watch:
        answer = send(server, start, trailers())
    assert answer.closed
    assert watch.growth < SLACK
    still_fine(server)


def test_chunk_extensions_without_end(server: ServerProcess) -> None:
    start = head("Transfer-Encoding: chunked") + b"1;"
    with watching(server) as watch:
        answer = send(server, start, (b"x" * 65536 for _ in range(6400)))
    assert answer.status in (0, 431)  # 0: the reset overtook the answer
    assert answer.closed
    assert answer.sent < 200 * MIB
    assert watch.growth < SLACK
    still_fine(server)


def test_a_body_where_none_is_wanted(server: ServerProcess) -> None:
    start = b"GET /models HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % (2048 * MIB)
    with watching(server) as watch:
        answer = send(server, start, zeros(2048 * MIB))
    assert answer.status == 200
    assert answer.closed
    assert answer.sent < 2048 * MIB
    assert watch.growth < SLACK
    still_fine(server)


def test_the_client_reads_why_a_large_body_is_refused(server: ServerProcess) -> None:
    pixels = np.zeros((12, 3, 1024, 1024), np.uint8)  # one request of 36 MiB
    with (
        Client(server.url, rows_per_request=10**6, max_retries=0) as client,
        pytest.raises(PayloadTooLargeError),
    ):
        client.embed(pixels)


def refused(answer: Answer, status: int, code: str) -> None:
    assert answer.status == status, answer.text[:500]
    assert f'"{code}"' in answer.text
    assert answer.closed, "the connection must not be used again"
