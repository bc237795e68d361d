"""Every row of an answer is the row that was asked for, whatever else is under way.

A row carries its number in its pixels, and the engine's answer gives the number back. By default
400 requests of 16 clients; `make identity` sends 50,000 of 64, with one and with
four HTTP processes.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from security.processes import MIB, server_process
from vim_embed_client import AsyncClient

SIDE = 8
_BASE = 256
FLAGS = ("--log-level", "warning")


def rows_of(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
    """(B, 3, SIDE, SIDE) pixels whose channels are the three digits of each number."""
    digits = np.stack([numbers // _BASE**2, numbers // _BASE % _BASE, numbers % _BASE], axis=1)
    shape = (len(numbers), 3, SIDE, SIDE)
    return np.broadcast_to(digits.astype(np.uint8)[:, :, None, None], shape).copy()


def numbers_in(embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
    """The numbers that answered rows carry: the engine gives the mean of each channel first."""
    digits = np.rint(embeddings[:, :3]).astype(np.int64)
    result: NDArray[np.int64] = digits @ np.array([_BASE**2, _BASE, 1])
    return result


async def ask_all(url: str, requests: int, clients: int) -> Counter[str]:
    """Send numbered rows, a different number in every row of all requests; count what came."""
    sizes = np.random.default_rng(7).choice([1, 1, 1, 2, 3, 5, 17, 40], requests)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    queue = iter(range(requests))
    seen = np.zeros(starts[-1], np.int64)
    counts: Counter[str] = Counter()

    async def work(client: AsyncClient) -> None:
        for number in queue:
            sent = np.arange(starts[number], starts[number + 1])
            answer = await client.embed(rows_of(sent), exact=bool(number % 2))
            found = numbers_in(answer.embeddings)
            counts["requests"] += 1
            counts["rows"] += len(found)
            counts["wrong rows"] += int((found != sent).sum())
            seen[sent] += 1

    made = [AsyncClient(url, max_retries=5) for _ in range(clients)]
    try:
        await asyncio.gather(*(work(client) for client in made))
    finally:
        await asyncio.gather(*(client.close() for client in made))
    counts["missing or repeated rows"] = int((seen != 1).sum())
    return counts


def test_the_check_sees_a_swap() -> None:
    numbers = np.array([3, 70_000, 1_000_000])
    means = rows_of(numbers).mean(axis=(2, 3), dtype=np.float32)
    assert numbers_in(means).tolist() == numbers.tolist()
    assert numbers_in(means[[1, 0, 2]]).tolist() != numbers.tolist()


def test_no_row_is_swapped(tmp_path: Path) -> None:
    with server_process(tmp_path, *FLAGS) as started:
        counts = asyncio.run(ask_all(started.url, 400, 16))
    assert counts["requests"] == 400
    assert (counts["wrong rows"], counts["missing or repeated rows"]) == (0, 0)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("http_processes", ["1", "4"])
def test_no_row_of_50_000_requests_is_swapped(tmp_path: Path, http_processes: str) -> None:
    requests = int(os.environ.get("VIM_EMBED_IDENTITY_REQUESTS", "50000"))
    begin = time.monotonic()
    with server_process(tmp_path, *FLAGS, "--http-processes", http_processes) as started:
        before = started.rss
        counts = asyncio.run(ask_all(started.url, requests, 64))
        memory = {"MiB before": before // MIB, "MiB after": started.rss // MIB}
    print(json.dumps(counts | memory | {"seconds": round(time.monotonic() - begin, 1)}))
    assert counts["requests"] == requests
    assert (counts["wrong rows"], counts["missing or repeated rows"]) == (0, 0)
