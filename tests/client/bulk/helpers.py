"""Galaxies in every kind of source, and the real service with the engine without torch."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
from numpy.typing import NDArray
from PIL import Image

from vim_embed.engine import ArithmeticEngine
from vim_embed.models.info import EmbedOptions

Array = NDArray[Any]
SIZE = 8


def pictures(count: int, *, seed: int = 0) -> Array:
    """(count, 3, SIZE, SIZE) uint8, no two alike."""
    return np.random.default_rng(seed).integers(0, 256, (count, 3, SIZE, SIZE), dtype=np.uint8)


def expected(pixels: Array) -> Array:
    """What ArithmeticEngine makes of uint8 rows of its own size."""
    engine = ArithmeticEngine(image_size=SIZE)
    return engine.run(engine.stage("arithmetic", [pixels], EmbedOptions()))["embedding"]


def png(pixels: Array) -> bytes:
    """(3, H, W) uint8 as a PNG."""
    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def read_parquet(path: Path) -> tuple[list[str], Array, dict[bytes, bytes]]:
    """Ids, embeddings and metadata of an output."""
    table = pyarrow.parquet.read_table(path)
    column = table["embedding"].combine_chunks()
    rows = column.flatten().to_numpy().reshape(len(table), -1)
    return table["id"].to_pylist(), rows, table.schema.metadata


def command(url: str, paths: Sequence[str | Path], output: Path, *options: str) -> list[str]:
    """`vim-embed embed` as a process of its own."""
    start = [sys.executable, "-m", "vim_embed_client", "embed", "--url", url]
    return [*start, *map(str, paths), "-o", str(output), "--json", "--quiet", *options]
