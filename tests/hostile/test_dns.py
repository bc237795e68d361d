"""A name server that takes questions and gives no answers, in the client."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from hostile.machine import in_namespace, may_unshare

pytestmark = [
    pytest.mark.hostile,
    pytest.mark.skipif(not may_unshare(), reason="mounts of its own are not allowed here"),
]
SILENT = "127.0.0.77"
RESOLVER_S = 120  # that the system's own resolver takes before it gives up
DEADLINE_S = 2

_ASK = f"""
import asyncio, json, os, time
import numpy as np
from vim_embed_client import AsyncClient, Client, VimEmbedError

URL, PIXELS = "http://gone.example.org:8000", np.zeros((1, 3, 8, 8), np.uint8)

def sync():
    with Client(URL, deadline={DEADLINE_S}) as client:
        client.embed(PIXELS)

async def asynchronous():
    async with AsyncClient(URL, deadline={DEADLINE_S}) as client:
        await client.embed(PIXELS)

def tell(kind, error, begin):
    told = [kind, type(error).__name__, str(error), time.monotonic() - begin]
    print(json.dumps(told), flush=True)

begin = time.monotonic()
try:
    sync()
except VimEmbedError as error:
    tell("sync", error, begin)

async def main():
    begin = time.monotonic()
    try:
        await asynchronous()
    except VimEmbedError as error:
        tell("async", error, begin)
    os._exit(0)  # the resolver's threads cannot be ended

asyncio.run(main())
"""


@pytest.fixture
def name_server() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
        try:
            silent.bind((SILENT, 53))
        except OSError as error:
            pytest.skip(f"no name server may be put here: {error}")
        silent.settimeout(60)
        yield silent


def test_the_deadline_holds(name_server: socket.socket, tmp_path: Path) -> None:
    """Both clients give up at their deadline, long before the resolver does."""
    config = tmp_path / "resolv.conf"
    config.write_text(f"nameserver {SILENT}\noptions timeout:30 attempts:4\n")
    before = in_namespace(f"mount --bind {config} /etc/resolv.conf")
    run = subprocess.run(
        [*before, sys.executable, "-c", _ASK], capture_output=True, text=True, timeout=100
    )
    assert name_server.recv(512), "nobody asked"
    told = [json.loads(line) for line in run.stdout.splitlines()]
    assert [kind for kind, *_ in told] == ["sync", "async"], run.stderr
    for _, error, text, seconds in told:
        assert error == "DeadlineExpiredError"
        assert "deadline" in text
        assert seconds < RESOLVER_S / 4


def test_a_name_that_is_none(tmp_path: Path) -> None:
    """Without a deadline the resolver's own error comes, and says which name it was."""
    config = tmp_path / "resolv.conf"
    config.write_text("nameserver 127.0.0.78\noptions timeout:1 attempts:1\n")
    run = subprocess.run(
        [*in_namespace(f"mount --bind {config} /etc/resolv.conf"), sys.executable, "-m",
         "vim_embed_client.cli", "health", "--url", "http://gone.example.org:8000"],
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert run.returncode == 3, run.stderr
    assert "gone.example.org" in run.stderr + run.stdout
    assert "Traceback" not in run.stderr
