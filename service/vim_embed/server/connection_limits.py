"""What connections may take, and how many were refused. Knows neither uvicorn nor routes."""

from __future__ import annotations

import logging
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

from vim_embed.settings import Settings

_LOG = logging.getLogger(__name__)

# Files that a process opens besides its connections: weights, logs, the sockets of its libraries.
_OTHER_FILES = 512
# A crowd of refused connections gives one line in the log in so many seconds.
_LOG_EVERY = 10.0


@dataclass(frozen=True)
class ConnectionLimits:
    """What connections may take: their number, bytes of a head, seconds, bytes a second."""

    connections: int
    head_bytes: int
    head_seconds: float
    stall_seconds: float
    least_rate: float

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        return cls(
            settings.max_connections,
            settings.max_header_bytes,
            settings.header_timeout,
            settings.body_timeout,
            settings.least_rate,
        )


class Guard:
    """What the connections of one process share: the limits, and how many were refused."""

    def __init__(
        self, limits: ConnectionLimits, on_refused: Callable[[str], None] = lambda reason: None
    ) -> None:
        self.limits = limits
        self.lingering = 0
        self._on_refused = on_refused
        self._unlogged = 0
        self._logged = float("-inf")

    def refused(self, reason: str) -> None:
        """Count a refusal; a crowd of them is one line in the log."""
        self._on_refused(reason)
        self._unlogged += 1
        if time.monotonic() - self._logged >= _LOG_EVERY:
            _LOG.warning("connections refused", extra={"count": self._unlogged, "last": reason})
            self._logged, self._unlogged = time.monotonic(), 0


def allow_open_files(limits: ConnectionLimits) -> None:
    """Let this process, and those it starts, have so many connections and some files besides.

    Raises ValueError that names the fix.
    """
    needed = limits.connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ValueError(
            f"{limits.connections} connections need {needed} open files, of which this system "
            f"allows {hard}: raise `ulimit -n`, or lower --max-connections"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
