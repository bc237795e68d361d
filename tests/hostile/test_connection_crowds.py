"""Thousands of connections that come and go, in every state that one may be left in."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from hostile.load import Load, wait
from hostile.test_stopped_processes import http_processes
from security.processes import MIB, server_process
from security.raw_http import head
from support.serving import NPY, npy

pytestmark = pytest.mark.hostile
CONNECTIONS = 6000
THREADS = 6
GROWTH = 24 * MIB
BODY = npy(np.zeros((1, 3, 8, 8), np.uint8))
TOP = head(**{"Content-Length": str(len(BODY)), **NPY})


def _silent(connection: socket.socket) -> None:
    """Nothing is said."""


def _half_a_head(connection: socket.socket) -> None:
    connection.sendall(TOP[: random.randrange(len(TOP))])


def _half_a_body(connection: socket.socket) -> None:
    connection.sendall(TOP + BODY[: random.randrange(len(BODY))])


def _no_answer_read(connection: socket.socket) -> None:
    connection.sendall(TOP + BODY)


def _answer_read(connection: socket.socket) -> None:
    connection.sendall(TOP + BODY)
    connection.recv(65536)


def _reset(connection: socket.socket) -> None:
    connection.sendall(TOP + BODY)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _half_closed(connection: socket.socket) -> None:
    connection.sendall(TOP + BODY)
    connection.shutdown(socket.SHUT_WR)


WAYS: tuple[Callable[[socket.socket], None], ...] = (
    _silent, _half_a_head, _half_a_body, _no_answer_read, _answer_read, _reset, _half_closed,
)  # fmt: skip


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.timeout(600)
def test_thousands_come_and_go(tmp_path: Path, processes: str) -> None:
    """Others are answered all the while; afterwards no file and no memory is left behind."""
    flags = ("--http-processes", processes, "--max-connections", "200")
    with server_process(tmp_path, *flags) as server:
        members = [server.process, *http_processes(server)]
        with Load(server.url, threads=2) as load:
            _crowd(server.port, CONNECTIONS // 10)
            load.more()
        wait(lambda: _files(members) < 60 * len(members), "connections stay open")
        files, memory = _files(members), _memory(members)
        with Load(server.url, threads=2) as load:
            begin = time.monotonic()
            _crowd(server.port, CONNECTIONS)
            seconds = time.monotonic() - begin
            load.more()
            load.only("503 too_many_connections", "ReadError", "RemoteProtocolError")
        wait(lambda: _files(members) <= files + 8, "connections stay open")
        grown = (_memory(members) - memory) / MIB
        print(f"{CONNECTIONS} connections in {seconds:.0f} s, {load.answers['200']} right answers "
              f"beside them, {grown:.1f} MiB grown")  # fmt: skip
        assert grown * MIB < GROWTH
        assert [each.pid for each in http_processes(server)] == [each.pid for each in members[1:]]
        assert "Traceback" not in server.log.read_text()


def _crowd(port: int, count: int) -> None:
    def some(seed: int) -> None:
        for _ in range(count // THREADS):
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), 10) as out:
                random.choice(WAYS)(out)
                if random.random() < 0.1:
                    time.sleep(0.05)

    threads = [threading.Thread(target=some, args=(seed,)) for seed in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _files(members: list[psutil.Process]) -> int:
    return sum(each.num_fds() for each in members)


def _memory(members: list[psutil.Process]) -> int:
    return sum(each.memory_full_info().uss for each in members)
