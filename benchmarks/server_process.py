"""A server in a process of its own, for as long as a benchmark needs it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import httpx

READY_S = 180.0


@dataclass(frozen=True)
class ServerProcess:
    """A server that listens on a port of this machine, or is about to."""

    port: int
    process: subprocess.Popen[bytes]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> None:
        """Until its models are loaded. Raises SystemExit where it ends first, or takes too long."""
        wait_ready(self.url, lambda: self.process.poll() is None)


def wait_ready(url: str, alive: Callable[[], bool] = lambda: True) -> None:
    """Until a server's models are loaded. Raises SystemExit if that takes too long."""
    end = time.monotonic() + READY_S
    with httpx.Client(timeout=5.0, trust_env=False) as http:
        while time.monotonic() < end and alive():
            with suppress(httpx.TransportError):
                if http.get(f"{url}/health/ready").status_code == 200:
                    return
            time.sleep(0.1)
    raise SystemExit(f"the server at {url} did not become ready")


@contextmanager
def server_process(
    command: Callable[[int], Sequence[str]], env: Mapping[str, str] | None = None
) -> Iterator[ServerProcess]:
    """What `command` of a free port starts, not ready yet; ended when the block is left."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(command(port), env=env)
    try:
        yield ServerProcess(port, process)
    finally:
        process.terminate()
        process.wait(60)


def service_command(port: int, model: str, *flags: str) -> list[str]:
    """Of the service itself, with random weights."""
    head = [sys.executable, "-m", "vim_embed.cli", "serve", "--random-weights"]
    return [*head, "--model", model, "--port", str(port), *flags]
