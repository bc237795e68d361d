"""Runs of the host in processes of their own, forked from one that has imported it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

HOST = Path(__file__).parent / "host"


class Run:
    """A run of the host in a process of its own. stdout: what it prints, errors included."""

    def __init__(self, address: str, request: Mapping[str, Any]) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        output, its_output = os.pipe()
        socket.send_fds(self._connection, [json.dumps(request).encode()], [its_output])
        os.close(its_output)
        self.stdout = os.fdopen(output)
        self._told = self._connection.makefile()
        self._pid = int(self._told.readline())
        self._waited_for = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if not self._waited_for:
            with suppress(ProcessLookupError):
                self.kill()
        self.stdout.close()
        self._told.close()
        self._connection.close()

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)

    def has_ended(self) -> bool:
        return bool(select.select([self._connection], [], [], 0)[0])

    def end(self) -> tuple[int, str]:
        """Wait for it; its exit code, and what it still printed."""
        output = self.stdout.read()
        code = int(self._told.readline())
        self._waited_for = True
        return code, output


@dataclass(frozen=True)
class Host:
    """An attached copy of the installed platonic-universe.

    environment: to run it in. address: the Unix socket of host/forks.py, which has imported it.
    """

    package: Path
    environment: Mapping[str, str]
    address: str

    def start(self, folder: Path, *arguments: str, **environment: str) -> Run:
        """Start the function of the host's console script in `folder`; results go to data/."""
        return self._start(folder, environment, arguments=arguments)

    def start_python(self, folder: Path, code: str, **environment: str) -> Run:
        """Start Python code that imports the host."""
        return self._start(folder, environment, code=code)

    def _start(self, folder: Path, environment: Mapping[str, str], **asked: Any) -> Run:
        (folder / "data").mkdir(exist_ok=True)
        return Run(self.address, {"folder": str(folder), "environment": environment, **asked})


def finish(run: Run) -> str:
    """The output of a run that must succeed."""
    with run:
        code, output = run.end()
    assert code == 0, output
    return output


@contextmanager
def forks(folder: str, environment: Mapping[str, str]) -> Iterator[str]:
    """The address at which runs of the host are started: a socket in the folder."""
    address = f"{folder}/runs"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        process = subprocess.Popen(
            [sys.executable, HOST / "forks.py", str(listener.fileno())],
            pass_fds=[listener.fileno()],
            env=environment,
        )
    try:
        yield address
    finally:
        process.kill()
        process.wait()
