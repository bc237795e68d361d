"""What the Open Inference Protocol costs beside POST /embed: milliseconds of a request.

    PYTHONPATH=tests:benchmarks python benchmarks/v2_cost.py --rows 1,8,128 --output table.md

Over loopback, with an engine that returns the images' first values at once, so that only the two
protocols are left: vim-embed's client on /embed, and tritonclient with binary and with JSON
tensors. The answers are compared first; rounds alternate, and the median is shown. Needs
tritonclient[http].
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tritonclient.http as triton
from numpy.typing import NDArray

from support.serving import running
from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.engines.interface import Outputs, Staged
from vim_embed.http.app import create_app
from vim_embed.settings import Settings
from vim_embed.types.model_info import EMBEDDING, EmbedOptions
from vim_embed.types.pixels import PixelArray
from vim_embed_client import Client

_SIZE = 224
_JSON_ROWS = 8  # beyond this JSON takes minutes
Call = Callable[[], NDArray[np.float32]]


class FreeEngine(ArithmeticEngine):
    """Costs nothing: the embedding of an image is its first eight values."""

    def stage(self, model: str, parts: Sequence[PixelArray], options: EmbedOptions) -> Staged:
        return super().stage(model, [part[:, :1, :1, : self.DIM] for part in parts], options)

    def run(self, staged: Staged) -> Outputs:
        pixels = staged.pixels  # type: ignore[attr-defined]
        return {EMBEDDING: pixels[:, 0, 0].astype(np.float32)}


def calls(url: str, client: Client, images: NDArray[np.uint8]) -> dict[str, Call]:
    """One request by each way."""
    other = triton.InferenceServerClient(url.removeprefix("http://"))

    def infer(binary: bool) -> NDArray[np.float32]:
        given = triton.InferInput("pixel_values", list(images.shape), "UINT8")
        given.set_data_from_numpy(images, binary_data=binary)
        wanted = [triton.InferRequestedOutput(EMBEDDING, binary_data=binary)]
        rows: NDArray[np.float32] = other.infer("arithmetic", [given], outputs=wanted).as_numpy(
            EMBEDDING
        )
        return rows

    ways: dict[str, Call] = {
        "/embed": lambda: np.asarray(client.embed(images)),
        "/v2 binary": lambda: infer(True),
    }
    if len(images) <= _JSON_ROWS:
        ways["/v2 JSON"] = lambda: infer(False)
    return ways


def measure(ways: dict[str, Call], rounds: int) -> dict[str, float]:
    """Median milliseconds of each way, in alternating rounds."""
    first = next(iter(ways.values()))()
    for name, call in ways.items():
        if not np.array_equal(call(), first):
            raise SystemExit(f"{name} gives other numbers than /embed: nothing is timed")
    seen: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, call in ways.items():
            begin = time.perf_counter()
            call()
            seen[name].append(1000 * (time.perf_counter() - begin))
    return {name: statistics.median(times) for name, times in seen.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", default="1,8,128", help="rows of a request, with commas")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, help="file for the table")
    options = parser.parse_args()
    lines = ["| rows | MB | /embed | /v2 binary | /v2 JSON |", "|---|---|---|---|---|"]
    app = create_app(Settings(), FreeEngine(image_size=_SIZE))
    with running(app) as url, Client(url) as client:
        for rows in map(int, options.rows.split(",")):
            shape = (rows, 3, _SIZE, _SIZE)
            images = np.random.default_rng(rows).integers(0, 256, shape, dtype=np.uint8)
            found = measure(calls(url, client, images), options.rounds)
            cells = [f"{found[way]:.1f} ms" if way in found else "" for way in
                     ("/embed", "/v2 binary", "/v2 JSON")]  # fmt: skip
            lines.append(f"| {rows} | {images.nbytes / 1e6:.1f} | {' | '.join(cells)} |")
            print(lines[-1])
    table = "\n".join(lines) + "\n"
    if options.output:
        options.output.write_text(table)
    else:
        print(table)


if __name__ == "__main__":
    main()
