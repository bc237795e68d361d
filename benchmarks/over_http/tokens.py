"""What answers of all tokens cost over HTTP, beside the same bytes through a plain socket.

    PYTHONPATH=service:client:tests:benchmarks python benchmarks/over_http/tokens.py

A server process with an engine that holds its tokens ready, (B, 197, 768), and this process as its
client: requests of 64 uint8 images of 224 pixels, the real `Client`, every answer compared. Beside
it, in alternating rounds: the same requests for `mean`, and a plain socket that takes as many bytes
and gives as many, which is the wire's limit on this machine.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from over_http.marks import IMAGE_SIZE, MODEL, MarksEngine, marks
from server_process import server_process

import vim_embed.engines.build
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.server.server import serve
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions, ModelInfo
from vim_embed.types.pixels import PixelArray
from vim_embed.types.token_layout import TokenLayout
from vim_embed_client import Client

ROWS, TOKENS, DIM = 64, 197, 768
LAYOUT = TokenLayout(grid=(14, 14), cls=98)


def tokens_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n, 8) marks to (n, 197, 768): a row's own marks, over and over."""
    found: NDArray[np.float32] = np.empty((len(rows), TOKENS, DIM), np.float32)
    found.reshape(len(rows), -1, rows.shape[1])[:] = rows[:, None]
    return found


@dataclass(frozen=True)
class _Asked:
    marks: Staged
    tokens: bool

    @property
    def rows(self) -> int:
        return self.marks.rows


class TokensEngine(MarksEngine):
    """Gives its marks as they are, or as all tokens."""

    def _info(self, name: str) -> ModelInfo:
        poolings = ("mean", "tokens")
        return replace(
            super()._info(name),
            dim=DIM,
            poolings=poolings,
            tokens=LAYOUT,
            patch_size=16,
            patch_stride=16,
        )

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        return _Asked(super().stage(model, parts, options), options.pooling == "tokens")

    def run(self, staged: Staged) -> Outputs:
        if not isinstance(staged, _Asked):
            return super().run(staged)
        found = super().run(staged.marks)[EMBEDDING]
        return {EMBEDDING: tokens_of(found) if staged.tokens else found}


def serve_tokens(port: int, http_processes: int) -> None:
    vim_embed.engines.build.build_engines = lambda settings, faults=None: [TokensEngine()]
    sys.exit(
        serve(
            Settings(port=port, models=(MODEL,), log_level="error", http_processes=http_processes)
        )
    )


def answer_plainly(listening: socket.socket, takes: int, gives: int) -> None:
    """As many bytes in and out as a request, with nothing looked at."""
    found, taken = memoryview(bytes(gives)), bytearray(1 << 20)
    while True:
        connection, _ = listening.accept()
        with connection:
            while True:
                left = takes
                while left and (count := connection.recv_into(taken, min(left, len(taken)))):
                    left -= count
                if left:
                    break
                connection.sendall(found)


class Wire:
    """The client of `answer_plainly`."""

    def __init__(self, port: int, body: bytes, gives: int) -> None:
        self._connection = socket.create_connection(("127.0.0.1", port))
        self._body, self._found = body, memoryview(bytearray(gives))

    def __call__(self) -> None:
        self._connection.sendall(self._body)
        at = 0
        while at < len(self._found):
            at += self._connection.recv_into(self._found[at:])

    def close(self) -> None:
        self._connection.close()


def rate(call: Callable[[], object], seconds: float) -> float:
    """Rows/s of calls one behind the other."""
    count, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        call()
        count += 1
    return count * ROWS / spent


def measure(url: str, wire: Wire, pixels: NDArray[np.uint8], given: argparse.Namespace) -> str:
    right = tokens_of(marks(pixels))
    with Client(url) as client:

        def ask(pooling: str, dtype: Any) -> Callable[[], object]:
            options = {"pooling": pooling, "dtype": dtype}
            expected = right if pooling == "tokens" else marks(pixels)
            found = client.embed(pixels, **options).embeddings  # type: ignore[arg-type]
            if not np.array_equal(found, expected.astype(found.dtype)):
                raise SystemExit(f"{pooling} in {dtype}: not the tokens that were computed")
            return lambda: client.embed(pixels, **options)  # type: ignore[arg-type]

        ways = {
            "mean": ask("mean", "float32"),
            "tokens, float32": ask("tokens", "float32"),
            "tokens, float16": ask("tokens", "float16"),
            "plain socket, as many bytes as float32": wire,
            "the engine alone": lambda: tokens_of(marks(pixels)),
        }
        found: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.rounds):
            for way, call in ways.items():
                found[way].append(rate(call, given.seconds))
    width = {"mean": 4 * 8, "tokens, float16": 2 * TOKENS * DIM}
    lines = ["| what | rows/s | MB/s of answers |", "|---|---|---|"]
    for way, rates in found.items():
        median = statistics.median(rates)
        mb = median * width.get(way, 4 * TOKENS * DIM) / 1e6
        lines.append(
            f"| {way} | {median:,.0f} ({min(rates):,.0f} to {max(rates):,.0f}) | {mb:,.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--http-processes", type=int, default=1)
    parser.add_argument("--serve", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve_tokens(given.serve, given.http_processes)
    pixels = np.random.default_rng(0).integers(
        0, 256, (ROWS, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8
    )
    gives = ROWS * TOKENS * DIM * 4
    listening = socket.create_server(("127.0.0.1", 0))
    plain = multiprocessing.get_context("fork").Process(
        target=answer_plainly, args=(listening, pixels.nbytes, gives), daemon=True
    )
    plain.start()
    flags = ["--http-processes", str(given.http_processes)]
    wire = Wire(listening.getsockname()[1], pixels.tobytes(), gives)
    try:
        with server_process(
            lambda port: [sys.executable, __file__, "--serve", str(port), *flags]
        ) as server:
            server.wait_ready()
            print(
                f"{os.cpu_count()} cores; {ROWS} images a request, "
                f"{given.http_processes} HTTP process"
            )
            print(measure(server.url, wire, pixels, given))
    finally:
        wire.close()
        plain.terminate()


if __name__ == "__main__":
    main()
