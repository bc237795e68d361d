"""The bare `embed` loop: what the model gives in process, without HTTP.

`vim-embed bench` runs it beside the server in one run, for the ratio of the two.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from vim_embed.inference.embedder import Embedder


@dataclass(frozen=True)
class BareResult:
    """Rows a second of an `embed` loop with `rows` rows a call."""

    rows_per_s: float
    rows: int
    seconds: float
    batch_rows: int
    backend: str
    device: str
    dtype: str
    threads: int
    random_weights: bool


def bare_loop(model: Embedder, *, rows: int, seconds: float, wire: str) -> BareResult:
    """Call `embed` on `rows` random images for `seconds`, after one warm-up call.

    wire: "uint8", "float16" or "float32", the dtype of the pixels.
    """
    size = model.info.preprocessing.image_size
    random = np.random.default_rng(0)
    batches = [random.integers(0, 256, (rows, 3, size, size), dtype=np.uint8) for _ in range(4)]
    inputs = [b if wire == "uint8" else (b.astype(np.float32) / 255).astype(wire) for b in batches]
    model.embed(inputs[0])
    calls, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        model.embed(inputs[calls % len(inputs)])
        calls += 1
    elapsed = time.perf_counter() - begin
    return BareResult(
        rows_per_s=calls * rows / elapsed,
        rows=calls * rows,
        seconds=elapsed,
        batch_rows=rows,
        backend=model.info.backend,
        device=model.info.device,
        dtype=model.info.dtype,
        threads=torch.get_num_threads(),
        random_weights=model.info.weights.random,
    )
