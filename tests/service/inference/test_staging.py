"""Rows of several requests become one batch, whichever threads copy them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vim_embed.inference import staging
from vim_embed.inference.staging import put_together


@pytest.mark.parametrize("lengths", [[1], [64], [1, 40, 2, 21], [30, 30]])
@pytest.mark.parametrize("piece", [10_000, 100_000, 4 * 1024 * 1024])
def test_every_row_is_in_its_place(
    lengths: list[int], piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_PIECE_BYTES", piece)
    generator = np.random.default_rng()
    parts = [generator.random((n, 3, 64, 64), dtype=np.float32) for n in lengths]
    for part in parts:
        part.flags.writeable = False
    out = np.full((sum(lengths), 3, 64, 64), np.nan, np.float32)
    with ThreadPoolExecutor(3) as pool:
        put_together(parts, out, pool)
    assert np.array_equal(out, np.concatenate(parts))


def test_a_copy_that_fails_is_told() -> None:
    parts = [np.zeros((8, 3, 512, 512), np.float32), np.zeros((8, 3, 256, 256), np.float32)]
    out = np.empty((16, 3, 512, 512), np.float32)
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="broadcast"):
        put_together(parts, out, pool)
