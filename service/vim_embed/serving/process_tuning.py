"""What a process of the service asks of the C library and of OpenMP. In this one place.

These are properties of a whole process, so only whoever owns the process may set them: the server,
its HTTP processes, a replica of a cluster, and the benchmarks that stand for them. A library's user
(`load_model`, the adapter) keeps the process as it was.

Two of them pull in opposite directions, and both are wanted. Between two forwards the C library
keeps what was freed, because the next forward asks for the same sizes. Every few seconds of work it
gives back what is free, because bodies and answers come in many sizes and leave pieces that the
next ones do not fit into.
"""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

# Seconds between two trims; one takes a few milliseconds.
_INTERVAL = 3.0
# Trims (ten minutes of them) between two calls of `rarely`: what a load needs now and then stays.
_RARELY = 200
# Turns that a thread of OpenMP spins while it waits; the default is thousands of times as long.
_SPINS = "1000"
# mallopt's names for what it sets, from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
# One arena for all threads: of the others, a trim leaves the ends.
_ARENAS = 1
# Bytes from which a piece of memory goes back to the system when it is freed.
_LARGE = 1 << 30


def spin_briefly() -> None:
    """Let OpenMP's threads sleep soon where they wait. Call it before torch is imported.

    Threads that spin for one that has no core take twice the processor time of the forward itself
    wherever a core is shared, with a client on the same machine for example.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _SPINS)


def tune_memory(device: str) -> None:
    """What a process with models does about its memory. device: the setting.

    Raises ValueError for devices that are not there.
    """
    share_one_arena()
    if device == "cpu" or _has_cpu(device):
        keep_freed_memory()


def _has_cpu(device: str) -> bool:
    from vim_embed.types.devices import resolve_devices  # imports torch

    return any(each.type == "cpu" for each in resolve_devices(device))


def share_one_arena() -> None:
    """Let all threads take memory from one heap, so that a trim reaches all that is free."""
    _mallopt(_M_ARENA_MAX, _ARENAS)


def keep_freed_memory() -> None:
    """Let the C library keep what a forward on the CPU frees, for the next one.

    Giving it back means clearing every page anew, a fifth of the forward's time. Where the
    environment tunes malloc itself (MALLOC_*), it is left alone.
    """
    if not any(name.startswith("MALLOC_") for name in os.environ):
        _mallopt(_M_MMAP_THRESHOLD, _LARGE)
        _mallopt(_M_TRIM_THRESHOLD, 2 * _LARGE - 1)


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


def _mallopt(name: int, value: int) -> None:
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(name, value)
