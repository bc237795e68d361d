"""Gives freed memory back to the system: bodies come and go in many sizes, and the C library keeps
what they once took together, in pieces that the next ones do not fit into.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress

_INTERVAL = 3.0  # seconds; a trim takes a few milliseconds


def trim() -> None:
    """Give back what is free, where the C library can be asked to."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Trimming:
    """A thread that trims from time to time, while there is work."""

    def __init__(self, worked: Callable[[], float], interval: float = _INTERVAL) -> None:
        """worked: a number that grows with the work done."""
        self._worked = worked
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="trim", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _repeat(self) -> None:
        before = self._worked()
        while not self._stopping.wait(self._interval):
            now = self._worked()
            if now != before:
                trim()
            before = now
