"""`embed` of arrays in process: rows that are not finite are named, in whichever chunk they are."""

from __future__ import annotations

import re

import numpy as np
import pytest

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
