"""SIGTERM while requests do not end: the drain is bounded, and each gets an error of its own."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from security.processes import ServerProcess, server_process
from security.raw_http import connect, error, head, status, until_closed
from support.serving import NPY, npy

BODY = npy(np.zeros((1, 3, 8, 8), np.uint8))
FLAGS = ["--drain-timeout", "1", "--fault-injection", "--forward-timeout", "600"]


def _until(condition: object) -> None:
    end = time.monotonic() + 30
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.02)


def _slow_body(server: ServerProcess, path: str) -> socket.socket:
    connection = connect(server.url, timeout=60)
    kind = {"Content_Type": "application/x-npy"}
    connection.sendall(head(path=path, **kind, Content_Length=str(len(BODY))) + BODY[:50])
    return connection


@pytest.mark.parametrize("processes", ["1", "2"])
def test_bodies_that_come_slowly_and_forwards_that_hang(tmp_path: Path, processes: str) -> None:
    with server_process(tmp_path, *FLAGS, "--http-processes", processes) as server:
        family = [server.process, *server.process.children(recursive=True)]
        slow = _slow_body(server, "/embed")
        slow_v2 = _slow_body(server, "/v2/models/arithmetic/infer")
        httpx.post(f"{server.url}/faults", json={"kind": "hang", "seconds": 500}).raise_for_status()
        hanging: list[httpx.Response] = []

        def embed() -> None:
            hanging.append(httpx.post(f"{server.url}/embed", content=BODY, headers=NPY, timeout=60))

        thread = threading.Thread(target=embed)
        thread.start()
        _until(lambda: httpx.get(f"{server.url}/faults").json()["met"].get("hang"))
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        with slow, slow_v2:
            answers = [until_closed(connection, 60) for connection in (slow, slow_v2)]
        thread.join(60)
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
        assert time.monotonic() - begin < 40, "the hang and the bodies were waited for"
        log = server.log.read_text()
    assert status(answers[0]) == status(answers[1]) == 503
    assert error(answers[0])["code"] == "draining"
    assert json.loads(answers[1].partition(b"\r\n\r\n")[2]).keys() == {"error"}
    assert isinstance(json.loads(answers[1].partition(b"\r\n\r\n")[2])["error"], str)
    assert hanging[0].status_code == 503
    assert hanging[0].json()["error"]["code"] in ("draining", "worker_failed")
    assert "Traceback" not in log
    assert "Internal Server Error" not in log


def test_the_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path, "--drain-timeout", "300", "--fault-injection") as server:
        httpx.post(f"{server.url}/faults", json={"kind": "hang", "seconds": 100}).raise_for_status()
        with connect(server.url, timeout=60) as connection:
            kind = {"Content_Type": "application/x-npy"}
            connection.sendall(head(**kind, Content_Length=str(len(BODY))) + BODY)
            _until(lambda: httpx.get(f"{server.url}/faults").json()["met"].get("hang"))
            server.process.send_signal(signal.SIGTERM)
            _until(lambda: '"draining"' in server.log.read_text())
            server.process.send_signal(signal.SIGTERM)
            psutil.wait_procs([server.process], timeout=60)
            assert not server.alive
