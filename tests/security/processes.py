"""A real server in a process of its own, whose memory and log a test can read."""

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
import psutil

_STUB = Path(__file__).with_name("stub_service.py")
MIB = 1024 * 1024


@dataclass(frozen=True)
class ServerProcess:
    """A server that answers."""

    url: str
    port: int
    process: psutil.Process
    log: Path

    @property
    def rss(self) -> int:
        """Bytes of memory that it holds now."""
        return int(self.process.memory_info().rss)

    @property
    def peak(self) -> int:
        """Bytes of memory that it held at most since `forget_peak`."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])

    def forget_peak(self) -> None:
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @property
    def cpu(self) -> float:
        """Seconds of CPU time that it has used."""
        times = self.process.cpu_times()
        return float(times.user + times.system)

    @property
    def alive(self) -> bool:
        return bool(self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE)


@contextmanager
def server_process(
    folder: Path,
    *flags: str,
    before: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[ServerProcess]:
    """`serve` with these flags on a free port of loopback; its log goes to a file in `folder`.

    before: a command that ends in becoming the one behind it. environment: beside the test's own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    log = folder / f"server-{port}.log"
    command = [*before, sys.executable, str(_STUB), "serve", "--port", str(port), *flags]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, env={**os.environ, **(environment or {})}
        )
    try:
        url = f"{'https' if '--tls-cert' in flags else 'http'}://127.0.0.1:{port}"
        _wait_until_ready(url, process, log)
        yield ServerProcess(url, port, psutil.Process(process.pid), log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + 60
    with httpx.Client(verify=False) as http:
        while time.monotonic() < end:
            assert process.poll() is None, log.read_text()
            with suppress(httpx.TransportError):
                if http.get(f"{url}/health/ready").status_code == 200:
                    return
            time.sleep(0.1)
    raise AssertionError(f"the server did not come up: {log.read_text()}")
