"""Runs the service as a child process for as long as a `with` block lasts."""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Self

from vim_embed_client.client import Client
from vim_embed_client.errors import (
    LocalServerError,
    ServiceNotInstalledError,
    StatusError,
    TransportError,
)

SERVE = (sys.executable, "-m", "vim_embed.cli", "serve")

_HOST = "127.0.0.1"
_NEEDED = ("torch", "fastapi", "uvicorn")
_POLL_S = 0.1
_STOP_S = 15.0
_LOG_LINES = 20
_LOG_BYTES = 16_384


class LocalServer:
    """A service of one's own on a free port of this machine; `url` is where it answers.

    models: names, or NAME=PATH; the first is the default. random_weights: numbers without
    meaning, for demos and benchmarks. args: further flags of `vim-embed-server serve`.
    env: the child's environment; None is this process's. ready_timeout: seconds until all
    models are loaded. on_wait: called with the seconds so far, again and again while they load.
    command: what to start in place of the installed service.

    Entering raises ServiceNotInstalledError, or LocalServerError with the last lines of the
    log. Leaving stops the child (SIGTERM, and SIGKILL if it does not obey).
    """

    def __init__(
        self,
        models: Sequence[str] = ("vim-tiny",),
        *,
        random_weights: bool = False,
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        ready_timeout: float = 300.0,
        on_wait: Callable[[float], None] | None = None,
        command: Sequence[str] = SERVE,
    ) -> None:
        if tuple(command) == SERVE:
            check_service_installed()
        port = _free_port()
        self.url = f"http://{_HOST}:{port}"
        flags = ["--host", _HOST, "--port", str(port)]
        for model in models:
            flags += ["--model", model]
        if random_weights:
            flags.append("--random-weights")
        self._command = [*command, *flags, *args]
        self._env = env
        self._ready_timeout = ready_timeout
        self._on_wait = on_wait

    def __enter__(self) -> Self:
        self._log: IO[bytes] = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=self._env,
        )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def log(self) -> str:
        """The last lines that the service wrote."""
        size = os.fstat(self._log.fileno()).st_size
        text = os.pread(self._log.fileno(), _LOG_BYTES, max(0, size - _LOG_BYTES))
        return "\n".join(text.decode(errors="replace").splitlines()[-_LOG_LINES:])

    def stop(self) -> None:
        """End the child and wait for it; harmless when it is already gone."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait_until_ready(self) -> None:
        started = time.monotonic()
        with Client(self.url, timeout=5.0, max_retries=0) as client:
            while not self._is_ready(client):
                elapsed = time.monotonic() - started
                if elapsed > self._ready_timeout:
                    raise self._error(f"the service was not ready within {elapsed:.0f} s")
                if self._on_wait:
                    self._on_wait(elapsed)
                time.sleep(_POLL_S)

    def _is_ready(self, client: Client) -> bool:
        code = self._process.poll()
        if code is not None:
            raise self._error(f"the service stopped while starting (exit code {code})")
        try:
            models = client.models()["models"]
            failed = [f"{m['name']} ({m['reason']})" for m in models if m["state"] == "failed"]
            if failed:
                raise self._error(f"the service cannot load {', '.join(failed)}")
            if any(m["state"] != "ready" for m in models):
                return False
            client.ready()
        except (TransportError, StatusError):
            return False
        return True

    def _error(self, what: str) -> LocalServerError:
        return LocalServerError(f"{what}. The end of its log:\n{self.log()}")


def check_service_installed() -> None:
    """Raise ServiceNotInstalledError where the service's libraries are missing."""
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ServiceNotInstalledError(
            f"a local service needs {', '.join(missing)}: "
            'pip install "vim-embed[service]", or name a running one (--url, VIM_EMBED_URL)'
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        port: int = probe.getsockname()[1]
        return port
