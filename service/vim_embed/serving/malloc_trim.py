"""Gives freed memory back to the system: bodies and what is made of them come and go in many sizes,
and the C library keeps what they once took together, in pieces that the next ones do not fit into.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress

_INTERVAL = 3.0  # seconds; a trim takes a few milliseconds
_RARELY = 200  # intervals, ten minutes: what a load needs now and then stays
# Of the C library. One arena for all threads: of others, a trim leaves the ends.
_M_ARENA_MAX, _ARENAS = -8, 1


def trim() -> None:
    """Give back what is free, where the C library can be asked to."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


class Trimming:
    """A thread that trims from time to time: the C library's memory while there is work, and every
    ten minutes what `rarely` gives back.
    """

    def __init__(
        self,
        worked: Callable[[], float],
        rarely: Callable[[], object] = lambda: None,
        interval: float = _INTERVAL,
    ) -> None:
        """worked: a number that grows with the work done."""
        self._worked = worked
        self.rarely = rarely
        self._interval = interval
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="trim", daemon=True)

    def start(self) -> None:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()

    def _repeat(self) -> None:
        before, intervals = self._worked(), 0
        while not self._stopping.wait(self._interval):
            now, intervals = self._worked(), intervals + 1
            if now != before:
                trim()
            if intervals % _RARELY == 0:
                self.rarely()
            before = now
