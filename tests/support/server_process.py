"""`vim-embed-server serve` as a process of its own, for tests."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx


@dataclass(frozen=True)
class Started:
    """A server that is ready."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "vim_embed.cli", *arguments]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextmanager
def server_process(
    *arguments: str, before: Sequence[str] = (), environment: Mapping[str, str] | None = None
) -> Iterator[Started]:
    """A server on the CPU with these flags, killed at the end if it is still there.

    before: a command that ends in becoming the one behind it. environment: beside the test's own.
    """
    port = free_port()
    log = Path(f"/tmp/vim-embed-test-{port}.log")
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*before, *command("serve", "--port", str(port), "--device", "cpu", *arguments)],
            stderr=out,
            env={**os.environ, **(environment or {})},
        )
    scheme = "https" if "--tls-cert" in arguments else "http"
    started = Started(f"{scheme}://127.0.0.1:{port}", process, log)
    try:
        _wait_ready(started)
        yield started
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(30)
        log.unlink()


def _wait_ready(started: Started) -> None:
    end = time.monotonic() + 120
    with httpx.Client(verify=False) as http:
        while time.monotonic() < end:
            assert started.process.poll() is None, f"the server died: {started.log.read_text()}"
            with suppress(httpx.TransportError):
                if http.get(f"{started.url}/health/ready").status_code == 200:
                    return
            time.sleep(0.1)
    raise AssertionError("the server did not become ready")
