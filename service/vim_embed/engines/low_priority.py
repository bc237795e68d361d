"""Work that must not disturb who serves: in a thread that gets the processors others leave."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
# A tenth of the share of an ordinary thread where both want a processor, and all of it where
# nobody else does. Lower still would let a load starve for minutes, with the interpreter's lock.
NICENESS = 10


def at_low_priority(do: Callable[[], T]) -> T:
    """`do()` in a thread of its own, and its result, or what it raises.

    Threads that it starts, such as OpenMP's, get the same priority. A priority cannot be raised
    again, so the thread ends with its work. Only Linux has priorities of single threads.
    """
    done: Future[T] = Future()

    def run() -> None:
        if sys.platform == "linux":
            with suppress(OSError):  # a sandbox may forbid it: then it runs as others do
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        try:
            done.set_result(do())
        except BaseException as error:
            done.set_exception(error)

    threading.Thread(target=run, name="vim-embed-low", daemon=True).start()
    return done.result()
