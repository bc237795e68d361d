"""Many clients at once: no row is swapped or lost."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
from numpy.typing import NDArray

from support.fixtures_vim import load_fixture
from vim_embed import load_model
from vim_embed_client import AsyncClient

CLIENTS = 32
SINGLES = 200
MIXED = 25
ROWS = 125
PIXELS = np.random.default_rng(20).integers(0, 256, (ROWS, 3, 64, 64), dtype=np.uint8)


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float32]:
    alone = load_model("micro", load_fixture("vim_micro").path, device="cpu")
    return np.concatenate([alone.embed(row) for row in PIXELS])


async def test_every_row_equals_the_row_computed_alone(
    micro_url: str, expected: NDArray[np.float32]
) -> None:
    random = np.random.default_rng(21)
    sizes = [1] * SINGLES + random.integers(2, 41, MIXED).tolist()
    jobs = [random.integers(0, ROWS, size) for size in sizes]
    random.shuffle(jobs)
    queue: asyncio.Queue[NDArray[np.int64]] = asyncio.Queue()
    for job in jobs:
        queue.put_nowait(job)
    answered = 0

    async def work(client: AsyncClient) -> None:
        nonlocal answered
        while not queue.empty():
            rows = queue.get_nowait()
            found = (await client.embed(PIXELS[rows], model="micro")).embeddings
            error = np.linalg.norm(found - expected[rows], axis=1)
            assert (error <= 1e-5 * np.linalg.norm(expected[rows], axis=1)).all()
            answered += len(rows)

    clients = [AsyncClient(micro_url, timeout=200, deadline=250) for _ in range(CLIENTS)]
    try:
        await asyncio.gather(*(work(client) for client in clients))
    finally:
        await asyncio.gather(*(client.close() for client in clients))
    assert answered == sum(sizes)
    spread = np.linalg.norm(expected - np.roll(expected, 1, axis=0), axis=1)
    assert spread.min() > 1e-3 * np.linalg.norm(expected, axis=1).max()  # a swap would show
