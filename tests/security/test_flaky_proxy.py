"""The real clients behind a proxy that spoils half of their requests.

A row's embedding tells which image it is of, so a wrong, missing, swapped or doubled row shows.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from security.flaky_proxy import FAULTS, FINE, flaky_proxy
from security.processes import ServerProcess, server_process
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.types.model_info import EmbedOptions
from vim_embed_client import AsyncClient, Client, VimEmbedError
from vim_embed_client.cli.main import run
from vim_embed_client.errors import (
    ConnectionLostError,
    DeadlineExpiredError,
    NotReadyError,
    QueueFullError,
    TimedOutError,
)
from vim_embed_client.scoring.embedding_files import read_embeddings

ROWS = 150
PATIENT: dict[str, Any] = {
    "max_retries": 40,
    "backoff": 0.002,
    "deadline": 60,
    "rows_per_request": 4,
    "in_flight": 4,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("server"), "--log-level", "error") as running:
        yield running


def galaxies(rows: int, seed: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (rows, 3, 8, 8), dtype=np.uint8)


def expected(pixels: NDArray[Any]) -> NDArray[np.float32]:
    engine = ArithmeticEngine()
    found = engine.run(engine.stage("arithmetic", [pixels], EmbedOptions()))["embedding"]
    assert len(np.unique(found, axis=0)) == len(pixels), "rows must be told apart"
    return found


def sync_rounds(server: ServerProcess, rounds: int) -> None:
    with flaky_proxy(server.port, seed=1) as proxy, Client(proxy.url, **PATIENT) as client:
        for seed in range(rounds):
            pixels = galaxies(ROWS, seed)
            found = client.embed(pixels).embeddings
            assert found.tobytes() == expected(pixels).tobytes()
    assert all(proxy.counts[fault] > 0 for fault in (*FAULTS, FINE)), proxy.counts


def test_every_row_comes_once_and_right(server: ServerProcess) -> None:
    sync_rounds(server, 5)


def test_every_row_comes_once_and_right_for_the_async_client(server: ServerProcess) -> None:
    async def rounds() -> None:
        async with AsyncClient(proxy.url, **PATIENT) as client:
            batches = [galaxies(ROWS, 100 + seed) for seed in range(5)]
            answers = await asyncio.gather(*(client.embed(pixels) for pixels in batches))
            for pixels, answer in zip(batches, answers, strict=True):
                assert answer.embeddings.tobytes() == expected(pixels).tobytes()

    with flaky_proxy(server.port, seed=2) as proxy:
        asyncio.run(rounds())
    assert all(proxy.counts[fault] > 0 for fault in (*FAULTS, FINE)), proxy.counts


def test_layers_come_right(server: ServerProcess) -> None:
    pixels = galaxies(ROWS, 7)
    with flaky_proxy(server.port, seed=3) as proxy, Client(proxy.url, **PATIENT) as client:
        layers = client.embed_layers(pixels)
    assert layers["last_hidden_state"].tobytes() == expected(pixels).tobytes()
    assert layers["first"].tobytes() == (-expected(pixels)).tobytes()


def test_the_command_writes_every_row_once(
    server: ServerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = galaxies(ROWS, 9)
    np.save(tmp_path / "galaxies.npy", pixels)
    output = tmp_path / "out.npy"
    with flaky_proxy(server.port, seed=4, share=0.3) as proxy:
        arguments = ["embed", "--url", proxy.url, "-o", str(output), "--retries", "12"]
        arguments += ["--batch-rows", "8", str(tmp_path / "galaxies.npy")]
        assert run(arguments) == 0, capsys.readouterr().err
    found = read_embeddings(str(output))
    assert found.ids == [f"{tmp_path / 'galaxies.npy'}#{row}" for row in range(ROWS)]
    assert found.embeddings.tobytes() == expected(pixels).tobytes()
    assert sum(proxy.counts[fault] for fault in FAULTS) > 2


BUDGET_ENDS = [
    ("reset", ConnectionLostError),
    ("upload", ConnectionLostError),
    ("head", ConnectionLostError),
    ("body", ConnectionLostError),
    ("body reset", ConnectionLostError),
    ("429", QueueFullError),
    ("503", NotReadyError),
]


@pytest.mark.parametrize(("fault", "error"), BUDGET_ENDS)
def test_when_the_attempts_are_used_up(
    server: ServerProcess, fault: str, error: type[VimEmbedError]
) -> None:
    with (
        flaky_proxy(server.port, faults=[fault], share=1) as proxy,
        Client(proxy.url, max_retries=3, backoff=0.01) as client,
        pytest.raises(error) as caught,
    ):
        client.embed(galaxies(2, 0))
    assert proxy.counts == {fault: 4}
    assert len(caught.value.message) > 3
    assert caught.value.request_id


@pytest.mark.parametrize("fault", ["reset", "body", "429", "stall"])
def test_when_the_deadline_passes(server: ServerProcess, fault: str) -> None:
    begin = time.monotonic()
    with (
        flaky_proxy(server.port, faults=[fault], share=1) as proxy,
        Client(proxy.url, max_retries=10_000, backoff=0.05, deadline=1) as client,
        pytest.raises(DeadlineExpiredError, match="deadline"),
    ):
        client.embed(galaxies(2, 0))
    assert time.monotonic() - begin < 10
    assert proxy.counts[fault] >= 1


def test_a_silent_service_ends_the_timeout(server: ServerProcess) -> None:
    with (
        flaky_proxy(server.port, faults=["stall"], share=1) as proxy,
        Client(proxy.url, timeout=0.5) as client,
        pytest.raises(TimedOutError),
    ):
        client.embed(galaxies(2, 0))


def test_one_lost_piece_fails_the_whole_call(server: ServerProcess) -> None:
    """No partial result: either all rows, or an error."""
    with (
        flaky_proxy(server.port, share=0.5, faults=["body"], seed=5) as proxy,
        Client(proxy.url, max_retries=0, rows_per_request=4) as client,
        pytest.raises(ConnectionLostError),
    ):
        client.embed(galaxies(ROWS, 0))
    assert proxy.counts["body"] > 0


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_every_row_comes_once_and_right_for_long(server: ServerProcess) -> None:
    sync_rounds(server, int(os.environ.get("VIM_EMBED_PROXY_ROUNDS", "300")))
