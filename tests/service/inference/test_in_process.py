"""`embed` of arrays in process: what it takes and refuses, whatever the process around it does."""

from __future__ import annotations

import re

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
