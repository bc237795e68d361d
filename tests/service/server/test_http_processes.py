"""Several HTTP processes before one model process; what both modes share is in the other tests."""

from __future__ import annotations

import asyncio
import io
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import Response

from security.processes import ServerProcess
from security.processes import server_process as small_server_process
from support.fixtures_vim import DATA
from support.server_process import Started, server_process
from support.serving import NPY, from_npy, npy
from vim_embed.http.body.arena import Arena
from vim_embed.server.http_pool import HttpPool
from vim_embed.server.http_process import Relay
from vim_embed.server.sockets import UnixSocket, tcp_sockets
from vim_embed.settings import Settings

MICRO = ("--model", f"micro={DATA / 'vim_micro.pth'}")
PIXELS = np.random.default_rng(2).integers(0, 256, (128, 3, 64, 64), dtype=np.uint8)


@dataclass(frozen=True)
class Several(Started):
    """A server with two HTTP processes."""

    fresh: list[int]  # kilobytes of each before its first body


@contextmanager
def several_processes() -> Iterator[Several]:
    with server_process(*MICRO, "--http-processes", "2", "--exact") as started:
        fresh = [kilobytes(process) for process in fronts(started)]
        yield Several(started.url, started.process, started.log, fresh)


@pytest.fixture(scope="module")
def several() -> Iterator[Several]:
    """For tests that leave it as it was."""
    with several_processes() as started:
        yield started


@pytest.fixture
def own_several() -> Iterator[Several]:
    """For tests that end it."""
    with several_processes() as started:
        yield started


def kilobytes(process: psutil.Process) -> int:
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+) kB", status)[0])


def embed(url: str, rows: int, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=npy(PIXELS[:rows]), headers=NPY | headers, timeout=60)


def fronts(started: Started) -> list[psutil.Process]:
    children: list[psutil.Process] = psutil.Process(started.process.pid).children()
    return children


def metric(url: str, name: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    found = re.findall(rf"^vim_embed_{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)
    return sum(float(value) for value in found)


def until(condition: object) -> None:
    end = time.monotonic() + 60
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_every_process_answers_and_one_place_counts(several: Several) -> None:
    before = metric(several.url, "rows_total")
    right = embed(several.url, 3).content
    for _ in range(20):  # each on a connection of its own
        assert embed(several.url, 3).content == right
    assert metric(several.url, "rows_total") == before + 63
    spent = [sum(each.cpu_times()[:2]) for each in fronts(several)]
    assert len(spent) == 2


def test_a_process_that_dies_is_replaced(several: Several) -> None:
    right = embed(several.url, 2).content
    victim = fronts(several)[0]
    victim.send_signal(signal.SIGKILL)
    until(lambda: len(fronts(several)) == 2 and victim not in fronts(several))
    time.sleep(2)
    for _ in range(10):
        assert embed(several.url, 2).content == right


def test_sigterm_under_load(own_several: Several) -> None:
    """Clients go on asking until the signal: what is in flight then is finished or refused."""
    right = from_npy(embed(own_several.url, 128).content)
    answers: list[httpx.Response] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(embed(own_several.url, 64))

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: metric(own_several.url, "waiting_rows") > 64)
    children = fronts(own_several)
    stop.set()
    before = len(answers)
    own_several.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(60)
    assert own_several.process.wait(60) == 0
    assert {answer.status_code for answer in answers} <= {200, 503}
    in_flight = [answer for answer in answers[before:] if answer.status_code == 200]
    assert in_flight
    finished = [from_npy(answer.content) for answer in answers if answer.status_code == 200]
    assert all(np.array_equal(each, right[:64]) for each in finished)
    assert not any(child.is_running() for child in children)


def test_the_processes_end_with_a_model_process_that_was_killed(own_several: Several) -> None:
    children = fronts(own_several)
    own_several.process.kill()
    own_several.process.wait(30)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive


def test_a_client_that_leaves_is_noticed_behind_the_processes(several: Several) -> None:
    host, port = several.url.removeprefix("http://").split(":")
    body = npy(PIXELS)
    head = "POST /embed HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-npy\r\n"
    dropped = metric(several.url, "dropped_rows_total")

    def noticed() -> bool:
        for _ in range(6):
            with socket.create_connection((host, int(port)), timeout=60) as connection:
                connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return metric(several.url, "dropped_rows_total") > dropped

    until(noticed)
    until(lambda: metric(several.url, "waiting_rows") == 0)
    assert embed(several.url, 2).status_code == 200


def test_nobody_else_hands_bodies_over(several: Several) -> None:
    right = embed(several.url, 2).content
    forged = embed(several.url, 2, **{"X-Vim-Embed-Handover": "[0, 0, 16]"})
    assert forged.content == right


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_unix_socket_beside_the_port(tmp_path: Path, processes: str) -> None:
    path = tmp_path / "vim.sock"
    flags = ("--unix-socket", str(path), "--http-processes", processes)
    with small_server_process(tmp_path, *flags) as started:
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path))) as client:
            answer = client.post("http://x/embed", content=npy(PIXELS[:2]), headers=NPY, timeout=60)
        assert answer.content == embed(started.url, 2).content
        started.process.send_signal(signal.SIGTERM)
        assert started.process.wait(60) == 0
    assert not path.exists()


def test_a_unix_socket_s_path_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ValueError, match="no socket"):
        UnixSocket(tmp_path / "file")
    with pytest.raises(ValueError, match="cannot listen"):
        UnixSocket(tmp_path / "no" / "folder")
    first = UnixSocket(tmp_path / "sock")
    with pytest.raises(ValueError, match="another process"):
        UnixSocket(tmp_path / "sock")
    first.socket.close()
    second = UnixSocket(tmp_path / "sock")  # the first was left behind, as by a kill
    first.remove()
    assert (tmp_path / "sock").exists(), "it is the second's by now"
    second.socket.close()
    second.remove()
    assert not (tmp_path / "sock").exists()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_bodies_beyond_the_budget_are_refused_unread(tmp_path: Path, processes: str) -> None:
    """20 requests of 12 MB at once into 50 MB: some are refused, the rest right, memory bounded."""
    budget, body = 50_000_000, npy(np.zeros((1000, 3, 64, 64), np.uint8))
    flags = ("--inflight-bytes", str(budget), "--max-body-bytes", "20000000", "--client-share", "1")
    with small_server_process(tmp_path, *flags, "--http-processes", processes) as started:
        assert embed(started.url, 128).status_code == 200
        before, peak, stop = memory(started), [0], threading.Event()

        def watch() -> None:
            while not stop.is_set():
                peak[0] = max(peak[0], memory(started))
                time.sleep(0.02)

        def send() -> None:
            answers.append(post(started.url, body))

        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=watch)]
        threads += [threading.Thread(target=send) for _ in range(20)]
        for thread in threads:
            thread.start()
        for thread in threads[1:]:
            thread.join(120)
        stop.set()
        threads[0].join()
        assert embed(started.url, 2).status_code == 200  # nothing stays reserved
    codes = sorted(answer.status_code for answer in answers)
    assert len(codes) == 20
    assert set(codes) == {200, 429}
    for answer in answers:
        if answer.status_code == 429:
            assert answer.json()["error"]["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
        else:
            found = from_npy(answer.content)
            np.testing.assert_allclose(found, np.broadcast_to(found[0], found.shape), rtol=1e-4)
    assert peak[0] - before < 2.5 * budget


def post(url: str, body: bytes) -> httpx.Response:
    return httpx.post(f"{url}/embed", content=io.BytesIO(body), headers=NPY, timeout=120)


def memory(started: ServerProcess) -> int:
    """Bytes of the server's processes that no other process shares, and the arenas once."""
    family = (started.process, *started.process.children())
    return sum(each.memory_full_info().pss for each in family)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 30_000)), max_size=60))
def test_an_arena_never_gives_the_same_bytes_twice(steps: list[tuple[bool, int]]) -> None:
    arena = Arena.create(100_000)
    held: list[tuple[int, int]] = []
    for take, size in steps:
        if take:
            offset = arena.take(size)
            if offset is not None:
                arena.view(offset, size)[:] = bytes([len(held) % 256]) * size
                held.append((offset, size))
        elif held:
            arena.give_back(*held.pop(size % len(held)))
        spans = sorted(held)
        assert all(a + n <= b for (a, n), (b, _) in pairwise(spans))
    for each in held:
        arena.give_back(*each)
    assert arena.held == 0
    assert arena.take(arena.size) == 0
    with pytest.raises(ValueError, match="outside"):
        arena.view(1, arena.size)
    arena.close()


async def test_bodies_that_are_no_pixels_need_no_room_beside_them() -> None:
    arena = Arena.private(4096)
    assert arena.take(4096) == 0
    body = b'{"inputs": "' + b"x" * 300_000 + b'"}'
    pieces = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
    messages: list[Any] = [
        {"type": "http.request", "body": piece, "more_body": True} for piece in pieces
    ]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    seen: list[bytes] = []

    async def model_process(scope: Any, receive: Any, send: Any) -> None:
        seen.append(await Request(scope, receive).body())
        await Response(status_code=204)(scope, receive, send)

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[Any] = []
    relay = Relay(Settings(), arena, 0, "/nowhere")
    relay._upstream = httpx.AsyncClient(transport=httpx.ASGITransport(model_process))
    scope = {
        "type": "http", "http_version": "1.1", "method": "POST", "path": "/models/micro/load",
        "raw_path": b"/models/micro/load", "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"transfer-encoding", b"chunked")],
    }  # fmt: skip

    async def stream() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    await relay(scope, stream, send)
    assert seen == [body]
    assert sent[0]["status"] == 204


# What an HTTP process has no use for: other people's memory.
NOT_IMPORTED = {"torch", "numpy", "PIL", "fastapi", "safetensors", "transformers"}


def test_http_processes_import_no_application(several: Several) -> None:
    """Each is small before its first body; what it imports is asked of a process like it."""
    assert len(several.fresh) == 2
    assert max(several.fresh) < 60_000, several.fresh
    code = "import sys, vim_embed.server.http_process; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    imported = {name.partition(".")[0] for name in modules.decode().split()}
    assert not imported & NOT_IMPORTED
    ours = {name for name in modules.decode().split() if name.startswith("vim_embed.http.")}
    assert not {name for name in ours if "app" in name or "routes" in name or "formats" in name}


@pytest.mark.parametrize("path", ["/embed", "/models", "/v2/models/micro/infer", "/v2"])
def test_the_answer_of_a_process_whose_model_process_is_gone(tmp_path: Path, path: str) -> None:
    answer = asyncio.run(_relayed(tmp_path / "nobody.sock", path))
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["x-request-id"] == "mine"
    failed = answer.json()["error"]
    if path.startswith("/v2"):
        assert "stopping" in failed
    else:
        assert failed["code"] == "draining"
        assert failed["request_id"] == "mine"


async def _relayed(upstream: Path, path: str) -> httpx.Response:
    relay = Relay(Settings(), Arena.private(4096), 0, str(upstream))
    transport = httpx.ASGITransport(relay)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
        return await http.post(path, content=b"x", headers={**NPY, "X-Request-ID": "mine"})


def test_a_process_that_stands_still_is_replaced() -> None:
    settings = Settings(models=["micro"], port=0, http_processes=2)
    sockets = [[each] for each in tcp_sockets(settings, 2)]
    pool = HttpPool(settings, sockets, lambda reason: None, silence=5.0)
    pool.start()
    try:
        until(lambda: all(member.heard is not None for member in pool._members))
        victim, other = pool.pids
        os.kill(victim, signal.SIGSTOP)
        until(lambda: len(pool.pids) == 2 and victim not in pool.pids)
        assert other in pool.pids
    finally:
        pool.stop(10)


def test_a_hangup_before_they_listen_does_not_end_them() -> None:
    settings = Settings(models=["micro"], port=0, http_processes=2)
    pool = HttpPool(settings, [[each] for each in tcp_sockets(settings, 2)], print)
    pool.start()
    started = pool.pids
    pool.reload()
    time.sleep(2)  # several times what they need to end of it
    assert pool.pids == started
    pool.stop(10)
