"""Starts the HTTP processes, replaces one that ended or stands still, and ends them."""

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
from vim_embed.server.http_process import Assignment
from vim_embed.serving.memory_limit import inflight_bytes
from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)
# Seconds between two looks at the processes.
_LOOK = 0.5
# Seconds without a sign of life, after which a process is ended and another takes its place. Its
# share of new connections would wait for it.
_SILENCE = 20.0
# Seconds that a look may come late before silences say nothing: this process stood still itself.
_LATE = 5.0


class HttpPool:
    """The HTTP processes of a service. `upstream` is where the model process is to listen."""

    def __init__(
        self,
        settings: Settings,
        listening: Sequence[Sequence[socket.socket]],
        on_refused: Callable[[str], None],
        *,
        silence: float = _SILENCE,
    ) -> None:
        """listening: each process's own sockets. on_refused: called with the reason for each
        connection that one of them refuses or breaks off. Raises ValueError if the bytes in flight
        do not suffice for one body a process.
        """
        whole = inflight_bytes(settings)
        share = whole // settings.http_processes
        if share < settings.max_body_bytes:
            raise ValueError(
                f"{settings.http_processes} HTTP processes share {whole} bytes, "
                f"less than one body of {settings.max_body_bytes} each: raise --inflight-bytes or "
                "lower --max-body-bytes"
            )
        self._folder = TemporaryDirectory(prefix="vim-embed-")  # for this user alone
        self.upstream = str(Path(self._folder.name) / "model.sock")
        self.arenas = [
            Arena.create(share, settings.client_share) for _ in range(settings.http_processes)
        ]
        self._settings = settings
        self._on_refused = on_refused
        self._silence = silence
        self._sockets = listening  # open as long as somebody may be started with them
        self._members: list[_Member] = []
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="vim-embed-http", daemon=True)

    @property
    def pids(self) -> list[int]:
        """Of the processes that run now."""
        return [each.process.pid for each in self._members if each.process.poll() is None]

    def start(self) -> None:
        """Start them, once the model process listens."""
        self._members = [self._start(number) for number in range(len(self.arenas))]
        self._keeper.start()

    def reload(self) -> None:
        """Let them read the API keys and the certificate again."""
        for member in self._members:
            member.process.send_signal(signal.SIGHUP)

    def stop(self, timeout: float) -> None:
        """Let them finish what they relay, and end."""
        self._stopping.set()
        if self._members:
            self._keeper.join()
        for member in self._members:
            member.hang_up()
        end = time.monotonic() + timeout
        for member in self._members:
            member.end(max(0.1, end - time.monotonic()))
        for arena in self.arenas:
            arena.close()
        for listening in self._sockets:
            for each in listening:
                each.close()
        self._folder.cleanup()

    def _start(self, number: int) -> _Member:
        arena = self.arenas[number]
        listening = [each.fileno() for each in self._sockets[number]]
        assignment = Assignment(
            number, arena.fd, arena.size, listening, self.upstream, _plain(self._settings)
        )
        return _Member(assignment, self._on_refused)

    def _keep(self) -> None:
        before = time.monotonic()
        while not self._stopping.wait(_LOOK):
            now = time.monotonic()
            stood_still, before = now - before > _LATE, now
            for number, member in enumerate(self._members):
                if stood_still:
                    member.heard = now
                if member.silent_for(now) > self._silence:
                    _LOG.error("HTTP process stands still: ending it", extra={"number": number})
                    member.process.kill()
                    member.process.wait()
                code = member.process.poll()
                if code is not None:
                    _LOG.error("HTTP process ended", extra={"number": number, "code": code})
                    member.hang_up()  # its pipe is open still
                    self._members[number] = self._start(number)


class _Member:
    """One HTTP process."""

    def __init__(self, assignment: Assignment, on_refused: Callable[[str], None]) -> None:
        self.heard: float | None = None  # when it last said something; it says so from its start
        self._on_refused = on_refused
        with _without_hangup():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vim_embed.server.http_process"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                pass_fds=[assignment.arena_fd, *assignment.listening],
                start_new_session=True,  # Ctrl-C is the model process's to handle
            )
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it ended at once: the keeper sees that
            self.process.stdin.write(json.dumps(asdict(assignment)) + "\n")
            self.process.stdin.flush()
        threading.Thread(target=self._listen, daemon=True).start()

    def silent_for(self, now: float) -> float:
        """Seconds since it last said something; 0 until it first did."""
        return 0.0 if self.heard is None else now - self.heard

    def hang_up(self) -> None:
        """Tell it to end."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def end(self, timeout: float) -> None:
        """Wait until it ended, or end it."""
        try:
            self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def _listen(self) -> None:
        """A process prints the reasons for which it refused connections, and blank lines."""
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.heard = time.monotonic()
                if line.strip():
                    self._on_refused(line.strip())


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
