"""Runs `vim-embed embed` as a process, kills it at random places, and watches its memory."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

VIM_EMBED = str(Path(sys.executable).with_name("vim-embed"))
_STUB = Path(__file__).with_name("stub_server.py")


@contextmanager
def stub_server(image_size: int) -> Iterator[str]:
    """The real service over ArithmeticEngine, in a process of its own; yields its URL."""
    command = [sys.executable, str(_STUB), str(image_size)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield f"http://127.0.0.1:{int(server.stdout.readline())}"
        finally:
            server.terminate()
            server.wait(timeout=30)


@dataclass
class Attempt:
    """One run of the command: how it ended, and (finished rows, RSS in bytes) over its time."""

    code: int
    output: str
    memory: list[tuple[int, int]] = field(default_factory=list)


def finished_rows(parts: Path) -> int:
    """Rows that the manifest of an unfinished run names."""
    try:
        lines = (parts / "manifest.jsonl").read_text().splitlines()
    except FileNotFoundError:
        return 0
    rows = 0
    for line in lines[1:]:
        try:
            rows += json.loads(line)["rows"]
        except ValueError:
            break
    return rows


def attempt(command: Sequence[str], parts: Path, *, kill_at: int | None = None) -> Attempt:
    """Run `command`; SIGKILL comes a random moment after `kill_at` rows are finished."""
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        memory = []
        while process.poll() is None:
            rows = finished_rows(parts)
            memory.append((rows, _rss(watched)))
            if kill_at is not None and rows >= kill_at:
                time.sleep(random.uniform(0, 0.3))
                process.kill()
                break
            time.sleep(0.02)
        assert process.stdout is not None
        output = process.stdout.read()
        return Attempt(process.wait(), output, memory)


def _rss(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
