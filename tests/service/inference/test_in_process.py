"""`embed` of arrays in process: what it takes and refuses, whatever the process around it does."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.fixtures_vim import DATA
from vim_embed import load_model
from vim_embed.types.pixels import PixelArray, PixelError


@pytest.mark.parametrize(("rows", "bad"), [(1, [0]), (33, [0]), (70, [5, 37]), (70, [69])])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_rows_that_are_not_finite_are_named(rows: int, bad: list[int], dtype: type) -> None:
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    pixels: PixelArray = np.random.default_rng().normal(size=(rows, 3, 64, 64)).astype(dtype)
    assert np.isfinite(model.embed(pixels)).all()
    for row, value in zip(bad, (np.nan, -np.inf), strict=False):
        pixels[row, 2, 63, 63] = value
    first_chunk = [row for row in bad if (row < rows % 32) == (bad[0] < rows % 32)]
    for call in (model.embed, model.embed_layers):
        with pytest.raises(PixelError, match=re.escape(f"rows {first_chunk} hold NaN")):
            call(pixels)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_torch_s_default_device_is_the_caller_s(backend: str) -> None:
    """meta stands for a GPU: what is made there has no numbers here."""
    path = DATA / "vim_micro.pth"
    pixels = np.random.default_rng().integers(0, 256, (5, 3, 40, 48), dtype=np.uint8)
    model = load_model("micro", path, device="cpu", backend=backend)
    plain, layers = model.embed(pixels, image_size=(40, 48)), model.embed_layers(pixels, "all")
    with torch.device("meta"):
        again = load_model("micro", path, device="cpu", backend=backend, exact_rows=2)
        for each in (model, again):
            assert each.embed(pixels, image_size=(40, 48)).tobytes() == plain.tobytes()
        found = model.embed_layers(pixels, "all")
    assert all(found[name].tobytes() == layers[name].tobytes() for name in layers)


FLOATS = np.random.default_rng(1).normal(size=(3, 3, 64, 64)).astype(np.float32)
TAKEN: dict[str, Callable[[], Any]] = {
    "big-endian": lambda: FLOATS.astype(">f4"),
    "float64": lambda: FLOATS.astype(">f8"),
    "in columns": lambda: np.asfortranarray(FLOATS),
    "backwards": lambda: FLOATS[:, :, ::-1].copy()[:, :, ::-1],
    "read-only": lambda: np.frombuffer(FLOATS.tobytes(), np.float32).reshape(FLOATS.shape),
    "with nothing masked": lambda: np.ma.masked_array(FLOATS, mask=False),
    "a tensor that is trained": lambda: torch.from_numpy(FLOATS.copy()).requires_grad_(),
    "a tensor in columns": lambda: torch.from_numpy(FLOATS).mT.contiguous().mT,
    "rows that are tensors": lambda: list(torch.from_numpy(FLOATS)),
    "rows of both": lambda: [torch.from_numpy(FLOATS[0]), FLOATS[1], FLOATS[2]],
}
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "masked": (lambda: np.ma.masked_array(FLOATS, FLOATS > 3), "masked, and a model takes none"),
    "rows, one masked": (
        lambda: [FLOATS[0], np.ma.masked_array(FLOATS[1], FLOATS[1] > 0)],
        r"array\.filled",
    ),
    "ragged": (lambda: [[1, 2], [3]], "must be an array or a tensor"),
    "tensors of two sizes": (lambda: [torch.ones(3, 64, 64), torch.ones(3, 32, 32)], "equal size"),
    "a sparse tensor": (lambda: torch.from_numpy(FLOATS).to_sparse(), "must be an array"),
    "a tensor without data": (lambda: torch.empty(FLOATS.shape, device="meta"), "must be an array"),
    "eighths": (lambda: torch.from_numpy(FLOATS).to(torch.float8_e4m3fn), "must be an array"),
    "no rows": (lambda: torch.empty(0, 3, 64, 64), "the batch is empty"),
    "nothing": (lambda: None, "got 0 dimensions"),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_arrays_of_every_kind(kind: str) -> None:
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    expected = model.embed(FLOATS)
    assert model.embed(TAKEN[kind]()).tobytes() == expected.tobytes()


def test_an_array_in_a_file(tmp_path: Path) -> None:
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    np.save(tmp_path / "images.npy", FLOATS)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert model.embed(mapped).tobytes() == model.embed(FLOATS).tobytes()


@pytest.mark.parametrize("dtype", [">f4", ">f8", "f8"])
def test_a_file_that_is_converted_is_not_read_whole(dtype: str, tmp_path: Path) -> None:
    """As FITS files are mapped: big-endian."""
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    rows = np.random.default_rng(2).normal(size=(400, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "images.npy", rows.astype(dtype))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    expected = model.embed(rows, image_size=32)
    tracemalloc.start()
    try:
        found = model.embed(mapped, image_size=32)
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < rows.nbytes / 3
    assert found.tobytes() == expected.tobytes()


def test_bfloat16_is_taken_as_float32() -> None:
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    tensor = torch.from_numpy(FLOATS).bfloat16()
    assert model.embed(tensor).tobytes() == model.embed(tensor.float()).tobytes()


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_array_of_images_is_refused(kind: str) -> None:
    model = load_model("micro", DATA / "vim_micro.pth", device="cpu")
    make, why = REFUSED[kind]
    for call in (model.embed, model.embed_layers):
        with pytest.raises(PixelError, match=why):
            call(make())
