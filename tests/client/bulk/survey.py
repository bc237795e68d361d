"""Writes a survey of small images in sources of several kinds, and says what must come out."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from PIL import Image

from vim_embed.engines.arithmetic import ArithmeticEngine
from vim_embed.types.model_info import EmbedOptions

Array = np.ndarray[Any, Any]
SIZE = 8
_BLOCK = 5000


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


def write_images(path: Path, pixels: Array) -> list[str]:
    """A folder of PNG files."""
    path.mkdir()
    names = [path / f"{row:06}.png" for row in range(len(pixels))]
    for name, one in zip(names, pixels, strict=True):
        name.write_bytes(png(one))
    return list(map(str, names))


def write_npy(path: Path, pixels: Array) -> list[str]:
    np.save(path.with_suffix(".npy"), pixels)
    return [f"{path}.npy#{row}" for row in range(len(pixels))]


def write_npz(path: Path, pixels: Array) -> list[str]:
    np.savez_compressed(path.with_suffix(".npz"), images=pixels, labels=np.arange(len(pixels)))
    return [f"{path}.npz:images#{row}" for row in range(len(pixels))]


def write_tar(path: Path, pixels: Array, *, suffix: str = ".tar", mode: str = "w") -> list[str]:
    """A webdataset shard: per sample an image and a label."""
    shard = path.with_name(path.name + suffix)
    with tarfile.open(shard, mode) as archive:  # type: ignore[call-overload]
        for row, one in enumerate(pixels):
            for name, data in ((f"{row:06}.png", png(one)), (f"{row:06}.cls", b"7")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    return [f"{shard}/{row:06}.png" for row in range(len(pixels))]


def write_tgz(path: Path, pixels: Array) -> list[str]:
    return write_tar(path, pixels, suffix=".tar.gz", mode="w:gz")


def write_parquet(path: Path, pixels: Array) -> list[str]:
    """As Hugging Face writes images."""
    images = [{"bytes": png(one), "path": None} for one in pixels]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({"label": range(len(pixels)), "image": pa.array(images, kind)})
    pyarrow.parquet.write_table(table, path.with_suffix(".parquet"), row_group_size=700)
    return [f"{path}.parquet#{row}" for row in range(len(pixels))]


WRITERS: tuple[Callable[[Path, Array], list[str]], ...] = (
    write_images, write_npy, write_npz, write_parquet, write_tar, write_tgz,
)  # fmt: skip


def write_survey(folder: Path, rows: int) -> Iterator[tuple[list[str], Array]]:
    """Fill `folder` with `rows` images; yields ids and pixels in the order of their names."""
    folder.mkdir()
    number = 0
    for first in range(0, rows, _BLOCK):
        left = min(_BLOCK, rows - first)
        for writer, count in zip(WRITERS, _shares(left, len(WRITERS)), strict=True):
            pixels = pictures(count, seed=number)
            yield writer(folder / f"s{number:05}", pixels), pixels
            number += 1


def _shares(total: int, parts: int) -> list[int]:
    return [total // parts + (part < total % parts) for part in range(parts)]


def galaxy(bands: int, size: int = 24, *, seed: int = 0, flux: float = 2.0) -> Array:
    """(bands, size, size) float32: a disk with noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    light = np.exp(-np.hypot(x, y * rng.uniform(1, 3)) / 0.3) * flux
    cube = light * np.linspace(0.3, 1, bands)[:, None, None]
    noisy: Array = cube + rng.normal(0, flux / 50, cube.shape)
    return noisy.astype(np.float32)
