"""What exact mode costs: images/s of `embed` with and without it, in calls of several sizes.

    PYTHONPATH=service python benchmarks/exact_cost.py --dtypes float32,float16 --output table.md

In process, from uint8 arrays in host memory, random weights, one thread; each size is timed with
and without exact mode in alternating rounds. The bytes are compared first: the same images one by
one, in sevens and in 64s. Needs torch, numpy and transformers; runs on a CPU too.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vim_embed import Embedder, load_model
from vim_embed.bench.cuda_meter import describe_machine

Images = NDArray[np.uint8]
_ROUNDS = 5


def bytes_are_equal(model: Embedder, images: Images) -> bool:
    """Whether every image gives the same bytes alone, in sevens and in 64s."""

    def in_parts(rows: int) -> bytes:
        parts = [images[i : i + rows] for i in range(0, len(images), rows)]
        return b"".join(model.embed(part, exact=True).tobytes() for part in parts)

    return in_parts(1) == in_parts(7) == in_parts(64)


def rate(model: Embedder, images: Images, seconds: float, *, exact: bool) -> float:
    """Images/s of calls with all of `images`."""
    calls, begin = 0, time.perf_counter()
    while (spent := time.perf_counter() - begin) < seconds:
        model.embed(images, exact=exact)
        calls += 1
    return calls * len(images) / spent


def line(model: Embedder, images: Images, seconds: float) -> str:
    """One row of the table: medians of the rounds."""
    rates: dict[bool, list[float]] = {False: [], True: []}
    for exact in rates:
        model.embed(images, exact=exact)
    for _ in range(_ROUNDS):
        for exact, found in rates.items():
            found.append(rate(model, images, seconds / _ROUNDS, exact=exact))
    usual, exact_rate = (statistics.median(rates[exact]) for exact in (False, True))
    info = model.info
    cells = [info.name, info.dtype, info.backend, str(info.exact_rows), str(len(images))]
    return f"| {' | '.join(cells)} | {usual:.1f} | {exact_rate:.1f} | {exact_rate / usual:.2f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", default="vim-tiny,vim-small,vim-base")
    parser.add_argument("--dtypes", default="float16")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--exact-rows", type=int, default=0, help="0: by device")
    parser.add_argument("--calls", default="1,7,32,64,256", help="images of a call")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each cell")
    parser.add_argument("--output", type=Path, help="write the table there (Markdown)")
    given = parser.parse_args()
    machine = "; ".join(f"{key} {value}" for key, value in describe_machine().items())
    head = "| model | dtype | backend | exact rows | images a call | images/s | exact | share |"
    lines = [f"Measured: {machine}.", "", head, "|---|---|---|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    images = np.random.default_rng(0).integers(0, 256, (256, 3, 224, 224), dtype=np.uint8)
    for name in given.models.split(","):
        for dtype in given.dtypes.split(","):
            model = load_model(
                name,
                device=given.device,
                dtype=dtype,
                random_weights=True,
                exact_rows=given.exact_rows,
            )
            if not bytes_are_equal(model, images[:64]):
                raise SystemExit(f"{name} in {dtype}: exact mode does not give equal bytes")
            for rows in map(int, given.calls.split(",")):
                lines.append(line(model, images[:rows], given.seconds))
                print(lines[-1], flush=True)
    if given.output:
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
