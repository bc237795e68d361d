"""Clients that take a large answer at a byte a second, or not at all, in crowds."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from hostile.load import Load, wait
from hostile.test_stopped_processes import decoders, http_processes
from security.processes import MIB, ServerProcess, server_process
from security.raw_http import head
from security.test_image_bounds import SMALL
from security.test_unsent_answers import ask_and_read_nothing
from support.serving import NPY, npy

pytestmark = pytest.mark.hostile
ROWS, WIDTH = 8, 32_768  # an answer of 8 MiB
READERS = 24
_ESTABLISHED = 1  # of the states of TCP in Linux
ROOM = 48 * MIB  # of them fit five, and one that is being made
# Beside these: what connections and the system hold of 24 answers, and what a batch takes.
BESIDE = READERS * MIB // 4 + 3 * 8 * MIB + 24 * MIB


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_crowd_at_a_byte_a_second(tmp_path: Path, processes: str) -> None:
    """Memory stays within its bound, others are answered, and the slow ones are broken off."""
    flags = ["--http-processes", processes, "--inflight-bytes", str(ROOM * int(processes))]
    flags += ["--max-body-bytes", str(MIB), "--body-timeout", "4", "--least-rate", "100000"]
    flags += ["--client-share", "1"]  # all of them have one address
    with (
        server_process(tmp_path, *flags, environment={"STUB_WIDTH": str(WIDTH)}) as server,
        ExitStack() as crowd,
    ):
        _ask_small(server)
        members = [server.process, *http_processes(server)]
        before, peak, stop = _memory(members), [0], threading.Event()

        def watch() -> None:
            while not stop.wait(0.05):
                peak[0] = max(peak[0], _memory(members))

        watching = threading.Thread(target=watch)
        watching.start()
        slow = [crowd.enter_context(ask_and_read_nothing(server.url)) for _ in range(READERS)]
        end = time.monotonic() + 120
        while not all(_ended(each) for each in slow):
            assert time.monotonic() < end
            for each in slow:
                with suppress(OSError):
                    each.recv(1)
            _ask_small(server)
            time.sleep(1)
        stop.set()
        watching.join()
        assert _broken_off(server) >= 4
        grown = (peak[0] - before) / MIB
        print(f"{READERS} readers of 8 MiB each: {grown:.0f} MiB grown, {_broken_off(server):.0f} "
              f"broken off, {processes} HTTP processes")  # fmt: skip
        assert peak[0] - before < (ROOM + BESIDE) * int(processes)
        assert "Traceback" not in server.log.read_text()


def _ask_small(server: ServerProcess) -> None:
    """A request that others' answers leave room for, however many they are."""
    assert httpx.get(f"{server.url}/models", timeout=60).status_code == 200


def _memory(members: list[psutil.Process]) -> int:
    total = 0
    for each in members:
        with suppress(psutil.NoSuchProcess):  # the test is over
            total += each.memory_full_info().pss
    return total


def _broken_off(server: ServerProcess) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith('vim_embed_refused_connections_total{reason="answer_not_read"}'):
            return float(line.split()[-1])
    return 0.0


def _ended(connection: socket.socket) -> bool:
    """Whether the server ended it: by its state, since what came before is not read."""
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED


def test_a_client_that_leaves_ends_its_decoding_behind_http_processes(tmp_path: Path) -> None:
    """The decoder stands still meanwhile, as if its image took for ever."""
    top = head(Content_Type="image/png", Content_Length=str(len(SMALL[0])))
    kind = {"Content-Type": "image/png"}
    with server_process(tmp_path, "--http-processes", "2") as server:
        url = f"{server.url}/embed"
        assert httpx.post(url, content=SMALL[0], headers=kind).status_code == 200
        (decoder,) = decoders(server)
        decoder.suspend()
        end = time.monotonic() + 60
        while decoder.is_running():
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(top + SMALL[0])
                time.sleep(0.2)  # it may leave before its image is sent: another comes
            assert time.monotonic() < end
        assert httpx.post(url, content=SMALL[0], headers=kind, timeout=60).status_code == 200


def test_a_small_answer_a_byte_a_second_holds_up_nobody(tmp_path: Path) -> None:
    body = npy(np.zeros((1, 3, 8, 8), np.uint8))
    top = head(**{"Content-Length": str(len(body)), **NPY})
    with server_process(tmp_path) as server, Load(server.url) as load, ExitStack() as crowd:
        slow = []
        for _ in range(200):
            connection = crowd.enter_context(
                socket.create_connection(("127.0.0.1", server.port), timeout=30)
            )
            connection.sendall(top + body)
            slow.append(connection)
        for _ in range(5):
            for connection in slow:
                with suppress(OSError):
                    connection.recv(1)
            load.more()
        wait(lambda: server.alive, "gone", 1)
        load.only()
