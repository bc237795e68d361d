"""SIGSTOP and SIGCONT for each process of a service in turn, under load."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import psutil
import pytest

from hostile.load import Load, expected, png, wait
from security.processes import ServerProcess, server_process
from support.serving import NPY, from_npy, npy

pytestmark = pytest.mark.hostile
STILL = 3.0  # seconds; the service ends an HTTP process after 20


def http_processes(server: ServerProcess) -> list[psutil.Process]:
    return _children(server, "vim_embed.server.http_process")


def decoders(server: ServerProcess) -> list[psutil.Process]:
    return _children(server, "vim_embed.http.formats.image_decoder")


def _children(server: ServerProcess, module: str) -> list[psutil.Process]:
    return [each for each in server.process.children() if module in each.cmdline()]


@pytest.mark.parametrize("processes", ["1", "3"])
@pytest.mark.timeout(600)
def test_each_process_stands_still_for_a_while(tmp_path: Path, processes: str) -> None:
    """Requests wait meanwhile; none fails, none is wrong, and no process is replaced."""
    with (
        server_process(tmp_path, "--http-processes", processes) as server,
        Load(server.url, threads=6) as load,
    ):
        wait(lambda: bool(decoders(server)), "no image was decoded")
        before = {each.pid for each in http_processes(server)}
        turns: dict[str, Callable[[], list[psutil.Process]]] = {
            "model": lambda: [server.process],
            "http": lambda: http_processes(server),
            "decoder": lambda: decoders(server),
        }
        for name, members in turns.items():
            for each in members():
                with _still(each):
                    time.sleep(STILL)
                load.more()
                assert not load.wrong, f"after {name}"
        with _still(*server.process.children(), server.process):
            time.sleep(STILL)
        load.more()
        load.only()
        assert {each.pid for each in http_processes(server)} == before
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_model_process_that_stands_still_longer_than_a_request_waits(
    tmp_path: Path, processes: str
) -> None:
    """With HTTP processes the client is told; without, nobody is there to tell it. After SIGCONT
    the service is as it was, and late rows are not computed.
    """
    pixels = np.random.default_rng(3).integers(0, 256, (4, 3, 8, 8), dtype=np.uint8)
    flags = ("--http-processes", processes, "--request-timeout", "1")
    with server_process(tmp_path, *flags) as server:
        post = {"content": npy(pixels), "headers": NPY}
        with _still(server.process):
            if processes == "1":
                with pytest.raises(httpx.TimeoutException):
                    httpx.post(f"{server.url}/embed", timeout=2, **post)  # type: ignore[arg-type]
            else:
                late = httpx.post(f"{server.url}/embed", timeout=60, **post)  # type: ignore[arg-type]
                assert (late.status_code, late.json()["error"]["code"]) == (
                    504, "deadline_exceeded",
                )  # fmt: skip
        answer = httpx.post(f"{server.url}/embed", timeout=60, **post)  # type: ignore[arg-type]
        assert np.array_equal(from_npy(answer.content), expected(pixels))


@pytest.mark.timeout(600)
def test_an_http_process_that_stays_still_is_replaced_under_load(tmp_path: Path) -> None:
    with (
        server_process(tmp_path, "--http-processes", "2") as server,
        Load(server.url, threads=4) as load,
    ):
        still = http_processes(server)[0]
        still.send_signal(signal.SIGSTOP)
        wait(lambda: not still.is_running(), "it was not replaced")
        wait(lambda: len(http_processes(server)) == 2, "none took its place")
        load.more(100)
        load.only("ReadError", "RemoteProtocolError", "ConnectError")  # of its own connections


def test_a_decoder_that_stays_still_ends_with_its_request(tmp_path: Path) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (1, 3, 8, 8), dtype=np.uint8)
    content, kind = png(pixels[0]), {"Content-Type": "image/png"}
    with server_process(tmp_path) as server:
        url = f"{server.url}/embed"
        assert httpx.post(url, content=content, headers=kind).status_code == 200
        (still,) = decoders(server)
        still.suspend()
        answer = httpx.post(f"{url}?timeout=1", content=content, headers=kind, timeout=60)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert not still.is_running()
        again = httpx.post(url, content=content, headers=kind)
        assert np.array_equal(from_npy(again.content), expected(pixels))


class _still:
    """Stopped meanwhile."""

    def __init__(self, *processes: psutil.Process) -> None:
        self._processes = processes

    def __enter__(self) -> None:
        for each in self._processes:
            if each.is_running():
                each.suspend()

    def __exit__(self, *_: object) -> None:
        for each in self._processes:
            if each.is_running():
                each.resume()
