"""Rows of several requests become one batch, in pieces of any size."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vim_embed.inference import staging
from vim_embed.inference.staging import HostStaging, as_tensor, put_together
from vim_embed.types.pixels import PixelArray


@pytest.mark.parametrize("lengths", [[1], [64], [1, 40, 2, 21], [30, 30], [3, 0, 4]])
@pytest.mark.parametrize("piece", [10_000, 100_000, 4 * 1024 * 1024])
@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_every_row_is_in_its_place(
    lengths: list[int], piece: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staging, "_PIECE_BYTES", piece)
    generator = np.random.default_rng()
    parts: list[PixelArray] = [
        (200 * generator.random((n, 3, 64, 64))).astype(dtype) for n in lengths
    ]
    parts[0] = np.ascontiguousarray(parts[0][..., ::-1])[..., ::-1]  # strides that torch refuses
    for part in parts:
        part.flags.writeable = False
    out = torch.full((sum(lengths), 3, 64, 64), 201 if dtype is np.uint8 else torch.nan)
    out = out.to(as_tensor(parts[0]).dtype)
    whole, done = np.concatenate(parts), 0
    for rows in put_together(parts, out):
        assert rows.start == done
        done = rows.stop
        assert np.array_equal(out[:done].numpy(), whole[:done])
    assert done == len(whole)


def test_parts_of_other_sizes_are_refused() -> None:
    parts = [np.zeros((8, 3, 512, 512), np.float32), np.zeros((8, 3, 256, 256), np.float32)]
    with pytest.raises(RuntimeError, match="size of tensor"):
        list(put_together(parts, torch.empty(16, 3, 512, 512)))


def test_read_only_memory_is_read_where_it_is() -> None:
    array = np.frombuffer(np.random.default_rng().bytes(96), np.uint8).reshape(2, 3, 4, 4)
    found = as_tensor(array)
    assert found.data_ptr() == array.ctypes.data
    assert np.array_equal(found.numpy(), array)


def test_on_a_cpu_rows_stay_there() -> None:
    parts = [np.random.default_rng().random((n, 3, 8, 8), dtype=np.float32) for n in (2, 3)]
    assert np.array_equal(HostStaging(torch.device("cpu"))(parts).ready(), np.concatenate(parts))
