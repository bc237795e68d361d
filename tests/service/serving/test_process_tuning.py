"""Freed memory goes back to the system while a service works; only servers tune their process."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from support.fixtures_vim import DATA
from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.http.app import create_app
from vim_embed.http.body.arena import Arena
from vim_embed.serving import process_tuning
from vim_embed.serving.process_tuning import Trimming
from vim_embed.settings import Settings

SIZE = 100_000  # small enough for the C library to keep
COUNT = 1_000
MB = 1 << 20


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_what_is_free_between_what_is_not_goes_back() -> None:
    pieces = [bytearray(b"x") * SIZE for _ in range(COUNT)]
    kept = pieces[::50]
    del pieces
    held = resident()
    work = Trimming(itertools.count().__next__, interval=0.01)
    work.start()
    try:
        until(lambda: held - resident() > SIZE * COUNT / 2)
    finally:
        work.stop()
    assert {bytes(piece[:1]) for piece in kept} == {b"x"}


def test_nothing_is_trimmed_where_nothing_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, trims = itertools.count(), []
    monkeypatch.setattr(process_tuning, "trim", lambda: trims.append(1))

    def worked() -> float:
        next(looks)
        return 7.0

    work = Trimming(worked, interval=0.01)
    work.start()
    until(lambda: next(looks) > 20)
    work.stop()
    assert not trims


def test_an_arena_gives_back_what_lies_beyond_its_latest_use() -> None:
    arena = Arena.private(64 * MB)
    before = resident()
    first, second = arena.take(MB), arena.take(40 * MB)
    assert first == 0
    assert second is not None
    np.frombuffer(arena.view(0, 41 * MB), np.uint8).fill(7)
    arena.trim()
    arena.trim()
    assert resident() - before > 39 * MB, "all of it is taken"
    assert set(arena.view(second, 40 * MB)) == {7}
    arena.give_back(second, 40 * MB)
    arena.trim()
    assert resident() - before > 39 * MB, "it was in use since the last trim"
    arena.trim()
    assert resident() - before < 5 * MB
    assert set(arena.view(0, MB)) == {7}
    again = arena.take(40 * MB)
    assert again == second
    np.frombuffer(arena.view(again, 40 * MB), np.uint8).fill(9)
    arena.trim()
    arena.trim()
    assert set(arena.view(again, 40 * MB)) == {9}


def test_a_service_trims_from_its_start_to_its_end() -> None:
    def at_work() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "trim"}

    others = at_work()  # of services that other tests share
    with running(create_app(Settings(), ArithmeticEngine())):
        assert at_work() - others
    until(lambda: not at_work() - others)


TUNINGS = """
import ctypes, os
calls = []
class Libc:
    def __init__(self, name): pass
    def mallopt(self, name, value): calls.append((name, value)); return 1
    def malloc_trim(self, pad): calls.append("trim"); return 1
real = ctypes.CDLL
ctypes.CDLL = lambda name=None, *a, **k: Libc(name) if name is None else real(name, *a, **k)
"""


def _untuned() -> dict[str, str]:
    """This process's environment without what another test may have tuned in it."""
    tuned = ("GOMP", "OMP", "MALLOC")
    return {name: value for name, value in os.environ.items() if not name.startswith(tuned)}


def _run(code: str, **environment: str) -> list[str]:
    """The lines that a fresh process prints after `code`, with its calls of mallopt noted."""
    done = subprocess.run(
        [sys.executable, "-c", TUNINGS + code], capture_output=True, text=True, check=True,
        env={**_untuned(), **environment},
    )  # fmt: skip
    return done.stdout.splitlines()


def test_a_library_s_user_keeps_the_process_as_it_was() -> None:
    assert _run(
        "before = dict(os.environ)\n"
        "import numpy as np\n"
        "from vim_embed import load_model\n"
        f"model = load_model('micro', {str(DATA / 'vim_micro.pth')!r}, device='cpu')\n"
        "model.embed(np.zeros((1, 3, 64, 64), np.uint8))\n"
        "ours = {k for k in os.environ if k.startswith(('GOMP', 'OMP', 'MALLOC'))} - set(before)\n"
        "print(calls, ours)\n"
    ) == ["[] set()"]


def test_a_process_of_the_service_is_tuned_once() -> None:
    code = (
        "from vim_embed.serving.process_tuning import spin_briefly, tune_memory\n"
        "spin_briefly(); tune_memory('cpu')\n"
        "print(sorted(calls), os.environ.get('GOMP_SPINCOUNT'))\n"
    )
    arena, mmap, trim = (-8, 1), (-3, 1 << 30), (-1, (1 << 31) - 1)
    assert _run(code) == [f"{[arena, mmap, trim]} 1000"]
    assert _run(code, MALLOC_ARENA_MAX="4", OMP_WAIT_POLICY="active") == [f"{[arena]} None"]
