"""What a client can hold open, over a real server: heads, idle time, connections, answers."""

from __future__ import annotations

import resource
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import pytest
from click.testing import CliRunner

from security.processes import server_process
from security.raw_http import connect, error, head, one_answer, status, until_closed
from support.serving import NPY, npy, running
from vim_embed.cli import main
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.server.connection_limits import ConnectionLimits, allow_open_files
from vim_embed.settings import Settings
from vim_embed_client import Client, TooManyConnectionsError

PIXELS = np.zeros((1, 3, 8, 8), np.uint8)
MOST = 8


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    settings = Settings(
        header_timeout=1,
        keep_alive_timeout=1,
        body_timeout=1,
        least_rate=10_000,
        max_connections=MOST,
        max_header_bytes=4096,
    )
    with running(create_app(settings, ArithmeticEngine())) as url:
        yield url


def _counted(url: str, reason: str) -> float:
    line = f'vim_embed_refused_connections_total{{reason="{reason}"}} '
    for found in httpx.get(f"{url}/metrics").text.splitlines():
        if found.startswith(line):
            return float(found.removeprefix(line))
    return 0.0


def test_a_head_that_stops_arriving(url: str) -> None:
    before = _counted(url, "request_timeout")
    with connect(url) as connection:
        begin = time.monotonic()
        connection.sendall(b"POST /embed HTTP/1.1\r\nHost:")
        answer = until_closed(connection)
        assert 0.9 < time.monotonic() - begin < 8
    assert (status(answer), error(answer)["code"]) == (408, "request_timeout")
    assert b"connection: close" in answer
    assert _counted(url, "request_timeout") == before + 1


def test_a_head_a_byte_at_a_time(url: str) -> None:
    with connect(url) as connection:
        for byte in head("GET", "/health/live", Pad="x" * 400):
            try:
                connection.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.02)
        else:
            pytest.fail("the whole head was waited for")
        assert status(until_closed(connection)) == 408


def test_a_connection_that_says_nothing_is_closed_without_a_word(url: str) -> None:
    with connect(url) as connection:
        assert until_closed(connection) == b""


def _open(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except OSError:
        return False


def test_blank_lines_keep_nothing_open(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("GET", "/health/live"))
        assert status(one_answer(connection)) == 200
        connection.settimeout(0.1)
        end = time.monotonic() + 60
        while _open(connection):
            assert time.monotonic() < end
            with suppress(OSError):
                connection.sendall(b"\r\n")


def test_an_idle_connection_is_closed_and_a_second_head_is_timed_too(url: str) -> None:
    with connect(url) as idle, connect(url) as slow:
        for connection in (idle, slow):
            connection.sendall(head("GET", "/health/live"))
            assert status(one_answer(connection)) == 200
        slow.sendall(b"GET /health/live HT")
        assert until_closed(idle) == b""
        assert status(until_closed(slow)) == 408


def test_a_head_that_is_too_large(url: str) -> None:
    for request in (
        head("GET", "/" + "x" * 5000),
        head("GET", "/", Cookie="x" * 5000),
        head("GET", "/", **{f"X{n}": "y" for n in range(1000)}),
        b"GET / HTTP/1.1\r\nHost: " + b"x" * 300_000,  # never ends
    ):
        with connect(url) as connection:
            connection.sendall(request)
            answer = until_closed(connection)
        assert (status(answer), error(answer)["code"]) == (431, "head_too_large")
    assert httpx.get(f"{url}/health/live", headers={"Pad": "x" * 3000}).status_code == 200


def test_trailers_without_end(url: str) -> None:
    with connect(url) as connection:
        top = head(Content_Type="application/x-npy", Transfer_Encoding="chunked")
        connection.sendall(top + b"1\r\nx\r\n0\r\n")
        answer = b""
        try:
            for number in range(2000):
                connection.sendall(b"Trailer-%d: %s\r\n" % (number, b"x" * 1000))
            answer = until_closed(connection)
        except OSError:
            answer = until_closed(connection)
    assert status(answer) == 431


@pytest.mark.parametrize(
    "request_", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", head("GET", "/", **{"Bad name": "x"})]
)
def test_what_is_no_http(url: str, request_: bytes) -> None:
    with connect(url) as connection:
        connection.sendall(request_)
        answer = until_closed(connection)
    assert (status(answer), error(answer)["code"]) == (400, "malformed_request")


def test_v2_gets_its_own_error_shape(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head("GET", "/v2/models", Cookie="x" * 5000))
        answer = until_closed(connection)
    assert status(answer) == 431
    assert b'{"error": "the request' in answer


def test_a_crowd_is_refused_and_can_come_again(url: str) -> None:
    time.sleep(1.2)  # those of earlier tests are closed as idle
    with ExitStack() as stack:
        for _ in range(MOST):
            connection = stack.enter_context(connect(url))
            connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        time.sleep(0.2)
        late = stack.enter_context(connect(url))
        late.sendall(head("GET", "/health/live"))
        answer = until_closed(late)
        assert (status(answer), error(answer)["code"]) == (503, "too_many_connections")
        assert b"retry-after: 1" in answer
        with Client(url, max_retries=0) as client, pytest.raises(TooManyConnectionsError):
            client.embed(PIXELS)
        with Client(url, max_retries=5) as client:  # the others' heads are late meanwhile
            assert len(client.embed(PIXELS)) == 1
    assert _counted(url, "too_many_connections") >= 2


def test_a_body_a_byte_at_a_time(url: str) -> None:
    with connect(url) as connection:
        body = npy(np.zeros((1, 3, 64, 64), np.uint8))
        begin = time.monotonic()
        top = head(Content_Type="application/x-npy", Content_Length=str(len(body)))
        connection.sendall(top)
        for start in range(0, len(body), 20):
            try:
                connection.sendall(body[start : start + 20])
            except OSError:
                break
            time.sleep(0.02)
        assert 0.9 < time.monotonic() - begin < 8  # the whole would take 12 s
        answer = until_closed(connection)
    assert (status(answer), error(answer)["code"]) == (408, "request_timeout")


def test_an_answer_that_nobody_reads(url: str) -> None:
    before = _counted(url, "answer_not_read")
    rows = npy(np.random.default_rng(0).integers(0, 256, (1000, 3, 8, 8), dtype=np.uint8))
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(20)
        parts = httpx.URL(url)
        connection.connect((parts.host, parts.port))
        top = head(
            path="/embed?layers=blocks",
            Content_Type="application/x-npy",
            Content_Length=str(len(rows)),
            Accept="application/json",
        )
        for _ in range(15):  # 5 MB of answers, more than the system's buffers take
            try:
                connection.sendall(top + rows)
            except OSError:
                break
        end = time.monotonic() + 15
        while _counted(url, "answer_not_read") == before:
            assert time.monotonic() < end
            time.sleep(0.1)


def test_requests_sent_far_ahead(url: str) -> None:
    before = _counted(url, "requests_ahead")
    with connect(url) as connection:
        try:
            connection.sendall(head("GET", "/models") * 500)
            until_closed(connection)
        except OSError:
            pass
    assert _counted(url, "requests_ahead") == before + 1


def test_a_few_requests_ahead_are_answered_in_order(url: str) -> None:
    with connect(url) as connection:
        paths = ["/health/live", "/models/none", "/models", "/health/ready"]
        connection.sendall(b"".join(head("GET", path) for path in paths))
        answer = until_closed(connection)
    found = [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]
    assert found == [200, 404, 200, 200]


def test_an_answer_before_the_end_of_the_body_closes(url: str) -> None:
    with connect(url) as connection:
        connection.sendall(head(Content_Type="text/html", Content_Length="100000") + bytes(1000))
        answer = until_closed(connection)
    assert (status(answer), error(answer)["code"]) == (415, "unsupported_media_type")
    assert b"connection: close" in answer


def test_a_connection_is_kept_for_the_next_request(url: str) -> None:
    with connect(url) as connection:
        body = npy(PIXELS)
        top = head(Content_Type="application/x-npy", Content_Length=str(len(body)))
        for _ in range(3):
            connection.sendall(top + body)
            answer = one_answer(connection)
            assert status(answer) == 200
            assert b"connection: close" not in answer


def test_other_protocols_are_not_spoken(url: str) -> None:
    upgrade = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
    }
    answer = httpx.get(f"{url}/health/live", headers=upgrade)
    assert answer.status_code == 200
    assert httpx.post(f"{url}/embed", content=npy(PIXELS), headers=NPY).status_code == 200


def test_more_connections_than_files_are_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    changed: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 2000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, both: changed.append(both))
    allow_open_files(ConnectionLimits.of(Settings(max_connections=1000)))
    assert changed == [(1512, 2000)]
    result = CliRunner().invoke(main, ["serve", "--max-connections", "1500", "--port", "0"])
    assert result.exit_code == 2
    assert "ulimit -n" in result.output


def test_several_http_processes_keep_the_limits(tmp_path: Path) -> None:
    limits = ("--header-timeout", "1", "--max-connections", "3", "--body-timeout", "1")
    several = server_process(tmp_path, "--http-processes", "2", *limits)
    with several as started, ExitStack() as stack:
        with connect(started.url) as connection:
            connection.sendall(b"POST /embed HTTP/1.1\r\nHost:")
            assert status(until_closed(connection)) == 408
        with connect(started.url) as connection:
            connection.sendall(head(Content_Type="application/x-npy", Content_Length="1000"))
            assert status(until_closed(connection)) == 408
        crowd = [stack.enter_context(connect(started.url)) for _ in range(20)]
        for connection in crowd:
            connection.sendall(b"GET /health/live HTTP/1.1\r\n")
        answers = [status(until_closed(connection)) for connection in crowd]
        assert set(answers) == {408, 503}
        assert answers.count(408) <= 6  # three of each process
        for connection in crowd:
            connection.close()
        time.sleep(0.5)
        refused = 'vim_embed_refused_connections_total{reason="too_many_connections"} '
        wanted, end = refused + f"{answers.count(503)}.0", time.monotonic() + 10
        while wanted not in (counted := httpx.get(f"{started.url}/metrics").text):
            assert time.monotonic() < end, counted
            time.sleep(0.1)
