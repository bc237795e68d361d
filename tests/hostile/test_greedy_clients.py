"""A client that takes all the memory it can get, beside others, behind several HTTP processes."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

import httpx
import numpy as np
import pytest

from hostile.load import expected
from security.processes import MIB, server_process
from security.raw_http import connect, error, head, status, until_closed
from support.serving import NPY, from_npy, npy

pytestmark = pytest.mark.hostile
PIXELS = np.random.default_rng(5).integers(0, 256, (2, 3, 8, 8), dtype=np.uint8)


@pytest.mark.parametrize("processes", ["1", "3"])
def test_a_greedy_client_starves_nobody_behind_http_processes(
    tmp_path: Path, processes: str
) -> None:
    """Two clients behind a proxy that is trusted, by their addresses."""
    room = 8 * MIB * int(processes)
    flags = ["--http-processes", processes, "--trusted-proxies", "127.0.0.1"]
    flags += ["--inflight-bytes", str(room), "--max-body-bytes", str(2 * MIB)]
    with server_process(tmp_path, *flags) as server, ExitStack() as open_ones:
        refused = 0
        for _ in range(16 * int(processes)):
            refused += _promise(open_ones.enter_context(connect(server.url)))
        assert refused
        for number in range(4 * int(processes)):
            headers = {**NPY, "X-Forwarded-For": f"203.0.113.{number}"}
            with httpx.Client() as http:
                answer = http.post(f"{server.url}/embed", content=npy(PIXELS), headers=headers)
            assert answer.status_code == 200, answer.text
            assert np.array_equal(from_npy(answer.content), expected(PIXELS))
        metrics = httpx.get(f"{server.url}/metrics").text
        (line,) = (x for x in metrics.splitlines() if 'refusals_total{reason="client_share"}' in x)
        assert float(line.split()[-1]) == refused
        assert "Traceback" not in server.log.read_text()


def _promise(connection: socket.socket) -> bool:
    """Announce a body of a MiB that does not come; whether there was no room for it."""
    greedy = {"X-Forwarded-For": "198.51.100.7", "Content-Length": str(MIB), **NPY}
    connection.sendall(head(**greedy, Expect="100-continue"))
    answer = connection.recv(65536)
    if status(answer) == 100:
        return False
    answer += until_closed(connection)
    assert (status(answer), error(answer)["code"]) == (429, "queue_full")
    assert b"--client-share" in answer
    return True
