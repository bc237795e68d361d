"""The comparison of servers: each gives the rows that were asked for, and a wrong row is noticed.

How fast they are is not tested: see benchmarks/over_http/rivals.py.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import psutil
import pytest
from over_http import rivals
from over_http.load import Body, WrongAnswer, drive
from over_http.marks import marks
from over_http.rivals import OURS, RIVALS, Rival, compare, end, npy, started, table

ROWS = 2


@contextmanager
def _answering(status: int, content: bytes) -> Iterator[int]:
    """A server that gives every request the same answer; its port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None:
            return None

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _send(port: int, body: Body) -> int:
    with closing(OURS.connect(port)) as connection:
        return drive([connection], [body], 0)


def test_a_mark_moves_with_every_part_of_a_row() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 3, 16, 16), dtype=np.uint8)
    found = marks(pixels)
    assert found.shape == (3, 8)
    assert not np.array_equal(found, marks(pixels[[1, 0, 2]]))
    assert not np.array_equal(found, marks(np.roll(pixels, 1, axis=-1)))
    assert not np.array_equal(found, marks(pixels.swapaxes(1, 2)))


@pytest.mark.parametrize("rival", RIVALS, ids=lambda rival: rival.module)
def test_every_server_gives_the_rows_that_were_sent(rival: Rival) -> None:
    pytest.importorskip(rival.needs)
    with started(rival) as server:
        rate = server.round(rival.bodies(ROWS), seconds=0.1, connections=2)
        other = Body(rival.bodies(ROWS)[0].content, rival.bodies(ROWS)[1].expected)
        with pytest.raises(WrongAnswer, match="not those that were sent"):
            server.round([other], seconds=0, connections=1)
    assert 0 < rate < float("inf")


def test_one_wrong_value_is_noticed() -> None:
    body = OURS.bodies(ROWS, 1)[0]
    right = body.expected.copy()
    with _answering(200, npy(right)) as port:
        assert _send(port, body) == ROWS
    right[-1, -1] += 1
    with (
        _answering(200, npy(right)) as port,
        pytest.raises(WrongAnswer, match="not those that were sent"),
    ):
        _send(port, body)


def test_an_error_is_no_row() -> None:
    with _answering(429, b"later") as port, pytest.raises(WrongAnswer, match="HTTP 429: later"):
        _send(port, OURS.bodies(ROWS, 1)[0])


def test_a_server_that_does_not_start_is_named_with_its_log() -> None:
    missing = Rival("no_such_module", "nobody", "text/plain", npy, OURS.decode)
    with pytest.raises(RuntimeError, match="nobody does not answer") as caught, started(missing):
        raise AssertionError("it started")
    assert "No module named" in caught.value.__notes__[0]


def test_the_table_compares_round_by_round() -> None:
    rival = Rival("slow", "slow one", "text/plain", npy, OURS.decode, 4.0)
    lines = table({OURS: [100.0, 60.0, 80.0], rival: [20.0, 12.0, 20.0]}).splitlines()
    assert lines[2] == "| vim-embed | 80 | 60 to 100 | 1.00× | – |"
    assert lines[3] == "| slow one | 20 | 12 to 20 | 5.00× | 4× |"


def test_all_servers_end(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def note(process: psutil.Popen) -> None:
        end(process)
        ended.append(process)

    monkeypatch.setattr(rivals, "end", note)
    plain = next(rival for rival in RIVALS if rival.module == "fastapi_raw")
    found = compare([OURS, plain], rows=1, rounds=1, seconds=0.05, connections=1)
    assert set(found) == {OURS, plain}
    assert len(ended) == 2
    assert not any(process.is_running() for process in ended)
