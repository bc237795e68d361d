"""Watching the memory of a server's processes while others load it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil


@dataclass
class Watched:
    """Samples: seconds since the begin and bytes of each process, the model's first."""

    seconds: list[float] = field(default_factory=list)
    resident: list[list[int]] = field(default_factory=list)
    unshared: list[int] = field(default_factory=list)  # of all, what they share counted once

    @property
    def peak(self) -> int:
        return max(self.unshared)


def processes(pid: int) -> list[psutil.Process]:
    """A server's model process, then its HTTP processes; those that decode come and go."""
    root = psutil.Process(pid)
    http = [each for each in root.children() if "vim_embed.server.http_process" in each.cmdline()]
    return [root, *sorted(http, key=lambda each: each.pid)]


@contextmanager
def watching(pid: int, every: float) -> Iterator[Watched]:
    """Sample until the end, and once at begin and end."""
    watched, stop, begin = Watched(), threading.Event(), time.monotonic()

    def sample() -> None:
        memory = [each.memory_full_info() for each in processes(pid)]
        watched.seconds.append(time.monotonic() - begin)
        watched.resident.append([each.rss for each in memory])
        watched.unshared.append(sum(each.pss for each in memory))

    def loop() -> None:
        while not stop.wait(every):
            with suppress(psutil.NoSuchProcess):  # one that is being replaced
                sample()

    sample()
    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield watched
    finally:
        stop.set()
        thread.join()
    sample()
