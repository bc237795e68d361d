"""Starts the HTTP processes, starts one again that ended, and ends them with the service."""

from __future__ import annotations

import json
import logging
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import SecretStr

from vim_embed.http.body.arena import Arena
from vim_embed.server.http_process import Front
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
_PAUSE = 0.5  # seconds before a process that ended is started again


class FrontProcesses:
    """The HTTP processes of a service. `upstream` is where the model process is to listen."""

    def __init__(
        self,
        settings: Settings,
        listening: Sequence[Sequence[socket.socket]],
        on_refused: Callable[[str], None],
    ) -> None:
        """listening: each process's own sockets. on_refused: called with the reason for each
        connection that one of them refuses or breaks off. Raises ValueError if the bytes in flight
        do not suffice for one body a process.
        """
        share = settings.inflight_bytes // settings.http_processes
        if share < settings.max_body_bytes:
            raise ValueError(
                f"{settings.http_processes} HTTP processes share {settings.inflight_bytes} bytes, "
                f"less than one body of {settings.max_body_bytes} each: raise --inflight-bytes or "
                "lower --max-body-bytes"
            )
        self._folder = TemporaryDirectory(prefix="vim-embed-")  # for this user alone
        self.upstream = str(Path(self._folder.name) / "model.sock")
        self.arenas = [Arena.create(share) for _ in range(settings.http_processes)]
        self._settings = settings
        self._on_refused = on_refused
        self._sockets = listening  # open as long as somebody may be started with them
        self._processes: list[subprocess.Popen[str]] = []
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="vim-embed-fronts", daemon=True)

    def start(self) -> None:
        """Start them, once the model process listens."""
        self._processes = [self._start(number) for number in range(len(self.arenas))]
        self._keeper.start()

    def hang_up(self) -> None:
        """Let them read the API keys and the certificate again."""
        for process in self._processes:
            process.send_signal(signal.SIGHUP)

    def stop(self, timeout: float) -> None:
        """Let them finish what they relay, and end."""
        self._stopping.set()
        if self._processes:
            self._keeper.join()
        for process in self._processes:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
        end = time.monotonic() + timeout
        for process in self._processes:
            try:
                process.wait(max(0.1, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for arena in self.arenas:
            arena.close()
        for listening in self._sockets:
            for each in listening:
                each.close()
        self._folder.cleanup()

    def _start(self, number: int) -> subprocess.Popen[str]:
        arena = self.arenas[number]
        listening = [each.fileno() for each in self._sockets[number]]
        settings = _plain(self._settings)
        front = Front(number, arena.fd, arena.size, listening, self.upstream, settings)
        with _without_hangup():
            process = subprocess.Popen(
                [sys.executable, "-m", "vim_embed.server.http_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[arena.fd, *listening],
                start_new_session=True,  # Ctrl-C is the model process's to handle
            )
        assert process.stdin is not None
        process.stdin.write(json.dumps(asdict(front)) + "\n")
        process.stdin.flush()
        threading.Thread(target=self._listen, args=(process,), daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[str]) -> None:
        """What a process prints are the reasons for which it refused connections."""
        assert process.stdout is not None
        with process.stdout as reasons:
            for reason in reasons:
                self._on_refused(reason.strip())

    def _keep(self) -> None:
        while not self._stopping.wait(_PAUSE):
            for number, process in enumerate(self._processes):
                code = process.poll()
                if code is not None:
                    _LOG.error("HTTP process ended", extra={"number": number, "code": code})
                    self._processes[number] = self._start(number)


@contextmanager
def _without_hangup() -> Iterator[None]:
    """What is started here inherits a blocked SIGHUP, which else would end it until it listens."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _plain(settings: Settings) -> dict[str, object]:
    """The settings as JSON can carry them, keys included: they go through a pipe."""
    values = settings.model_dump()
    return {k: v.get_secret_value() if isinstance(v, SecretStr) else v for k, v in values.items()}
