"""Loading leaves the processors to who serves."""

from __future__ import annotations

import os
import sys
import threading

import pytest

from vim_embed.engines.low_priority import NICENESS, at_low_priority


def priority() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities of threads")
def test_the_work_and_its_threads_alone_are_of_low_priority() -> None:
    before, found = priority(), []

    def work() -> str:
        found.append(priority())
        child = threading.Thread(target=lambda: found.append(priority()))
        child.start()
        child.join()
        return "done"

    assert at_low_priority(work) == "done"
    assert found == [max(before, NICENESS)] * 2
    assert priority() == before


def test_what_it_raises_is_raised() -> None:
    with pytest.raises(ValueError, match="no weights"):
        at_low_priority(lambda: int("no weights"))
